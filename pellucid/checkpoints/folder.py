"""Hugging Face folders in: `config.json`, `generation_config.json`, safetensors in one file or in shards."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pellucid.checkpoints.assemble import Named, assemble, check_tensors
from pellucid.errors import InputError
from pellucid.models.config import ModelConfig
from pellucid.models.decoder import Decoder
from pellucid.models.families import Family, family_for, parameter_shapes
from pellucid.tokenizer.tokenizer import Tokenizer

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
OWN = "pellucid"  # the model type of what no published family can express
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor as a header tells of it: its file, its name there, shape and dtype."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class Folder:
    """What the small files and headers of a model folder say. family None: the model type is "pellucid", names ours."""

    path: Path
    hf_config: Mapping[str, Any]
    generation_config: dict[str, Any]
    family: Family | None
    config: ModelConfig
    tensors: Mapping[str, Stored]  # by the names that the family gives them

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that most of the weights are stored in."""
        sizes: dict[torch.dtype, int] = {}
        for tensor in self.tensors.values():
            dtype = DTYPES[tensor.dtype]
            sizes[dtype] = sizes.get(dtype, 0) + torch.Size(tensor.shape).numel()
        return max(sizes, key=lambda dtype: sizes[dtype])


def open_folder(path: str | Path) -> Folder:
    """Reads and checks everything but the weights. Raises `InputError` that names the file and the tensor."""
    path = Path(path)
    hf_config = read_json(path / "config.json")
    if "quantization_config" in hf_config:
        raise InputError(f"{path}: the weights are quantised ('quantization_config'), which is not read from a folder")
    model_type = hf_config.get("model_type")
    if not isinstance(model_type, str):
        raise InputError(f"{path / 'config.json'}: 'model_type' is missing, so the architecture is unknown")
    try:
        family = None if model_type == OWN else family_for(model_type)
        config = family.read_config(hf_config) if family else ModelConfig(**hf_config.get("config", {}))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    tensors = _read_headers(path, config, family)
    wanted = family.shapes(config) if family else parameter_shapes(config)
    check_tensors({name: tensor.shape for name, tensor in tensors.items()}, wanted, path)
    generation = path / "generation_config.json"
    return Folder(path, hf_config, read_json(generation) if generation.is_file() else {}, family, config, tensors)


def read_folder(
    path: str | Path, dtype: torch.dtype | None = None, device: str = "cpu", quantize: str | None = None
) -> tuple[Decoder, Tokenizer]:
    """The model and tokenizer of a Hugging Face folder. dtype None: the checkpoint's own. quantize: as for `assemble`.

    Tensors that are stored in `dtype` stay in the mapped files; others are cast one by one.
    """
    folder = open_folder(path)
    config, family = folder.config, folder.family
    files = {file: _open(file) for file in {tensor.file for tensor in folder.tensors.values()}}

    def read(name: str) -> Named:
        stored = folder.tensors[name]
        tensor: Tensor = files[stored.file].get_tensor(stored.name)
        return family.to_ours(config, name, tensor) if family else {name: tensor}

    model = assemble(config, folder.tensors, read, dtype or folder.dtype, device, quantize)
    model.generation_config = folder.generation_config
    return model, Tokenizer.load(path)


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


def _read_headers(path: Path, config: ModelConfig, family: Family | None) -> dict[str, Stored]:
    """Every tensor that the config has a use for, by its full name."""
    tensors: dict[str, Stored] = {}
    for file in _weight_files(path):
        with _open(file) as handle:
            for name in handle.keys():  # noqa: SIM118 (the handle is no dictionary)
                if family and family.ignores(config, name):
                    continue
                full = family.prefixed(name) if family else name
                if full in tensors:
                    raise InputError(f"{file}: the tensor {name!r} is there twice, in {tensors[full].file.name} too")
                header = handle.get_slice(name)
                if header.get_dtype() not in DTYPES:
                    raise InputError(
                        f"{file}: the tensor {name!r} is stored as {header.get_dtype()}, which is not read"
                    )
                tensors[full] = Stored(file, name, tuple(header.get_shape()), header.get_dtype())
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
