"""Hugging Face folders in: `config.json`, `generation_config.json`, safetensors in one file or in shards."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pellucid.checkpoints.assemble import STORED, Named, assemble, check_tensors, keeps
from pellucid.checkpoints.compressed import BESIDE, PACKED, Layout, decompress, split_rows, widened
from pellucid.checkpoints.compressed import read_config as read_layout
from pellucid.errors import InputError
from pellucid.models.classifier import Classifier
from pellucid.models.config import ModelConfig
from pellucid.models.decoder import Decoder
from pellucid.models.families import CLASSIFIER, Family, family_for, parameter_shapes
from pellucid.operations.blocks import BYTES, row_bytes
from pellucid.tokenizer.tokenizer import Tokenizer

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SCORE = "score.weight"  # of a classifier, in all families
OWN = "pellucid"  # the model type of what no published family can express
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor as a header tells of it: its file, its name there, shape and dtype.

    dtype: as safetensors has it, or the format of the blocks that hold the same where the weights are of few bits; then
    the name is that of the packed integers.
    """

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def num_bytes(self) -> int:
        """Of the numbers, and of the scales that belong to them."""
        if self.dtype in BYTES:
            return self.shape[0] * row_bytes(self.shape[1], self.dtype)
        return torch.Size(self.shape).numel() * DTYPES[self.dtype].itemsize


@dataclass(frozen=True, slots=True)
class Folder:
    """What the small files and headers of a model folder say. family None: the model type is "pellucid", names ours.
    layout: of the matrices of few bits, where there are any. labels: of a classifier; None: it is a language model."""

    path: Path
    hf_config: Mapping[str, Any]
    generation_config: dict[str, Any]
    family: Family | None
    config: ModelConfig
    tensors: Mapping[str, Stored]  # by the names that the family gives them
    layout: Layout | None
    labels: int | None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that most of the weights are stored in; float32 where some are of few bits."""
        if self.layout is not None:
            return torch.float32
        sizes: dict[torch.dtype, int] = {}
        for tensor in self.tensors.values():
            if tensor.dtype in DTYPES:
                dtype = DTYPES[tensor.dtype]
                sizes[dtype] = sizes.get(dtype, 0) + torch.Size(tensor.shape).numel()
        return max(sizes, key=lambda dtype: sizes[dtype])


def open_folder(path: str | Path) -> Folder:
    """Reads and checks everything but the weights. Raises `InputError` that names the file and the tensor."""
    path = Path(path)
    hf_config = read_json(path / "config.json")
    model_type = hf_config.get("model_type")
    if not isinstance(model_type, str):
        raise InputError(f"{path / 'config.json'}: 'model_type' is missing, so the architecture is unknown")
    try:
        family = None if model_type == OWN else family_for(model_type)
        config = family.read_config(hf_config) if family else ModelConfig(**hf_config.get("config", {}))
        few_bits = hf_config.get("quantization_config")
        layout = None if few_bits is None else read_layout(few_bits)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    classifies = any(name.endswith(CLASSIFIER) for name in hf_config.get("architectures") or ())
    if classifies:
        config = Classifier.config_of(config)
    tensors = _read_headers(path, config, family, layout)
    wanted = family.shapes(config) if family else parameter_shapes(config)
    labels = None
    if classifies:
        labels = tensors[SCORE].shape[0] if SCORE in tensors else 1
        wanted = {**wanted, SCORE: (labels, config.hidden_size)}
    check_tensors({name: tensor.shape for name, tensor in tensors.items()}, wanted, path)
    generation = path / "generation_config.json"
    defaults = read_json(generation) if generation.is_file() else {}
    return Folder(path, hf_config, defaults, family, config, tensors, layout, labels)


def read_folder(
    path: str | Path, dtype: torch.dtype | None = None, device: str = "cpu", quantize: str | None = None
) -> tuple[Decoder, Tokenizer]:
    """The model and tokenizer of a Hugging Face folder. dtype None: the checkpoint's own. quantize: as for `assemble`.

    Tensors that are stored in `dtype` stay in the mapped files; others are cast one by one.
    """
    folder = open_folder(path)
    config, family = folder.config, folder.family
    files = {file: _open(file) for file in _weight_files(folder.path)}  # scales may have one of their own
    wider: list[str] = []  # matrices whose few bits are no blocks

    def tensor(name: str) -> Tensor:
        for file in files.values():
            if name in file.keys():  # noqa: SIM118 (the file is no dictionary)
                found: Tensor = file.get_tensor(name)
                return found
        raise InputError(f"{folder.path}: the tensor {name!r} is missing; fetch the model again")

    def read(name: str) -> Named:
        stored = folder.tensors[name]
        if folder.layout is None or stored.dtype not in BYTES:
            given: Tensor = files[stored.file].get_tensor(stored.name)
            return family.to_ours(config, name, given) if family and name != SCORE else {name: given}
        few = decompress(stored.name.removesuffix(PACKED), folder.layout, tensor)
        if quantize == STORED and isinstance(few, Tensor):
            wider.append(name)
        rows = split_rows(family, config, name, stored.shape[1], few) if family else {name: few}
        return rows if keeps(quantize, stored.dtype) else {ours: widened(part) for ours, part in rows.items()}

    make = Decoder if folder.labels is None else partial(Classifier, labels=folder.labels)
    model = assemble(config, folder.tensors, read, dtype or folder.dtype, device, quantize, make)
    if wider:
        say_what_is_widened(folder, wider, model.dtype)
    model.generation_config = folder.generation_config
    return model, Tokenizer.load(path)


def say_what_is_widened(folder: Folder, names: Sequence[str], dtype: torch.dtype) -> None:
    """A warning where matrices of few bits cannot stay so. names: the family's."""
    size = sum(math.prod(folder.tensors[name].shape) for name in names) * dtype.itemsize
    warnings.warn(
        f"{len(names)} matrices of {folder.path} have scales that float16 does not hold, as blocks want them: they are "
        f"widened to {str(dtype).removeprefix('torch.')}, {size / 2**20:.0f} MiB",
        stacklevel=2,
    )


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in the file at `path`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: this is not JSON ({error})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: a JSON object is wanted, not a {type(content).__name__}")
    return content


def _read_headers(path: Path, config: ModelConfig, family: Family | None, layout: Layout | None) -> dict[str, Stored]:
    """Every tensor that the config has a use for, by its full name."""
    tensors: dict[str, Stored] = {}
    for file in _weight_files(path):
        with _open(file) as handle:
            for name in handle.keys():  # noqa: SIM118 (the handle is no dictionary)
                if layout and name.endswith(BESIDE):
                    continue
                packed = layout is not None and name.endswith(PACKED)
                plain = name.removesuffix(PACKED) + ".weight" if packed else name
                if family and family.ignores(config, plain):
                    continue
                header = handle.get_slice(name)
                shape, dtype = tuple(header.get_shape()), header.get_dtype()
                if layout and packed:
                    shape, dtype = layout.shape(shape), layout.format
                elif dtype not in DTYPES:
                    raise InputError(f"{file}: the tensor {name!r} is stored as {dtype}, which is not read")
                full = family.prefixed(plain) if family and plain != SCORE else plain
                if full in tensors:
                    raise InputError(f"{file}: the tensor {name!r} is there twice, in {tensors[full].file.name} too")
                tensors[full] = Stored(file, name, shape, dtype)
    return tensors


def _weight_files(path: Path) -> list[Path]:
    """The safetensors files of a folder: those of the index, or the only one."""
    if not (path / INDEX).is_file():
        if (path / WEIGHTS).is_file():
            return [path / WEIGHTS]
        pickled = next(path.glob("*.bin"), None)
        advice = f"; {pickled.name} is a pickle, which is not read: convert it to safetensors" if pickled else ""
        raise InputError(f"{path}: there is neither {WEIGHTS} nor {INDEX}{advice}")
    weight_map = read_json(path / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise InputError(f"{path / INDEX}: 'weight_map' must name the file of each tensor")
    shards = sorted(set(weight_map.values()))
    for shard in shards:
        if Path(shard).name != shard:
            raise InputError(f"{path / INDEX}: the shard {shard!r} is outside the folder")
        if not (path / shard).is_file():
            raise InputError(f"{path}: the shard {shard!r} of the index is missing; fetch it again")
    return [path / shard for shard in shards]


def _open(file: Path) -> Any:
    """The safetensors file, mapped."""
    try:
        return safe_open(file, framework="pt")
    except SafetensorError as error:
        raise InputError(f"{file}: this safetensors file is truncated or broken ({error}); fetch it again") from None
