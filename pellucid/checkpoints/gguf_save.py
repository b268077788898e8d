"""A model into a GGUF file that llama.cpp runs: `save_gguf`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pellucid.checkpoints.atomic import atomic_file
from pellucid.checkpoints.gguf_config import choose_architecture, rope_tensor, write_metadata
from pellucid.checkpoints.gguf_models import GENERATION
from pellucid.checkpoints.gguf_names import expected_shapes, to_theirs
from pellucid.checkpoints.gguf_quants import BY_NAME
from pellucid.checkpoints.gguf_read import GGUF
from pellucid.checkpoints.gguf_vocabulary import vocabulary_metadata
from pellucid.checkpoints.gguf_write import write_gguf
from pellucid.checkpoints.save import About
from pellucid.errors import InputError, did_you_mean
from pellucid.layers.quantised import Blocks
from pellucid.models.config import ModelConfig
from pellucid.models.decoder import Decoder
from pellucid.tokenizer.tokenizer import Tokenizer

FILE_TYPES = {
    "F32": 0,
    "F16": 1,
    "BF16": 32,
    "Q8_0": 7,
    "Q4_0": 2,
    "Q4_1": 3,
}  # general.file_type, of the kinds that we write
ROPE_FACTORS = "rope_freqs.weight"
ALWAYS_FLOAT32 = "position_embd.weight"  # llama.cpp adds it as it is


def save_gguf(
    model: Decoder,
    tokenizer: Tokenizer,
    path: str | Path,
    *,
    kind: str = "f16",
    about: About | None = None,
    blocks: Mapping[str, Blocks] | None = None,
    progress: Callable[[int, int], None] = lambda _written, _whole: None,
) -> None:
    """Writes one file with everything that llama.cpp needs: weights, vocabulary, template, generation defaults.

    kind: "f32", "f16", "bf16", "q8_0", "q4_0" or "q4_1", of the matrices; vectors are F32. blocks: matrices, by the
    names of the model's parameters, that are already in blocks of `kind`; matrices that are not among them are F16.
    progress is told bytes written and in all. An earlier GGUF file at `path` is replaced, whole or not at all.

    Raises `InputError` for a model or tokenizer that llama.cpp cannot express, or a path that holds something else.
    """
    path, stored = Path(path), parse_kind(kind)
    check_replaceable_file(path)
    config = model.config
    architecture = choose_architecture(config)
    metadata = {
        "general.architecture": architecture,
        "general.type": "model",
        "general.name": path.stem,
        "general.file_type": FILE_TYPES[stored],
        "general.quantization_version": 2,
        **{f"pellucid.{name}": value for name, value in (about or About()).as_json().items()},
        **write_metadata(config, architecture),
        **vocabulary_metadata(tokenizer, config.vocab_size),
        **_generation_metadata(model.generation_config),
    }
    factors = rope_tensor(config)
    extra = {} if factors is None else {ROPE_FACTORS: torch.from_numpy(factors)}
    shapes = {name: tuple(tensor.shape) for name, tensor in extra.items()} | expected_shapes(config, architecture)
    weights = model.weights() | {name: one.data for name, one in (blocks or {}).items()}
    ready = _names_of_blocks(config, architecture, weights)
    plan = [
        (name, shape, stored if name in ready else _kind_of(name, shape, stored if blocks is None else "F16"))
        for name, shape in shapes.items()
    ]
    sizes = [torch.Size(shape).numel() // BY_NAME[kind].block * BY_NAME[kind].size for _, shape, kind in plan]
    written = 0

    def count(size: int) -> None:
        nonlocal written
        written += size
        progress(written, sum(sizes))

    def tensors() -> Iterator[tuple[str, Tensor]]:
        yield from extra.items()
        yield from to_theirs(config, architecture, weights)

    with atomic_file(path) as temporary, torch.no_grad():
        write_gguf(temporary, metadata, plan, tensors(), count)


def parse_kind(kind: str) -> str:
    """The number format of that name, in GGUF's spelling."""
    names = [name.lower() for name in FILE_TYPES]
    if kind.lower() not in names:
        raise InputError(f"type = {kind!r}: it must be one of {', '.join(names)}{did_you_mean(kind, names)}")
    return kind.upper()


def _kind_of(name: str, shape: tuple[int, ...], stored: str) -> str:
    """The number format of one tensor."""
    if len(shape) < 2 or name == ALWAYS_FLOAT32:
        return "F32"
    if shape[-1] % BY_NAME[stored].block:
        warnings.warn(f"{name}: rows of {shape[-1]} are no multiple of 32, so it is written as f16", stacklevel=3)
        return "F16"
    return stored


def _names_of_blocks(config: ModelConfig, architecture: str, weights: Mapping[str, Tensor]) -> set[str]:
    """Their names of the matrices that are given as blocks."""
    meta = {name: torch.empty_like(tensor, device="meta") for name, tensor in weights.items()}
    return {name for name, tensor in to_theirs(config, architecture, meta) if tensor.dtype == torch.uint8}


def _generation_metadata(generation: dict[str, Any]) -> dict[str, Any]:
    """The sampling defaults that GGUF has a key for; ids of tokens come with the vocabulary."""
    sampling = {key: generation.get(name) for key, name in GENERATION.items() if key.startswith("general.sampling.")}
    return {
        key: value if key.endswith("top_k") else float(value)
        for key, value in sampling.items()
        if isinstance(value, int | float)
    }


def check_replaceable_file(path: Path) -> None:
    """`InputError` unless the path is free or holds a GGUF file."""
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the name of a file")
    if path.exists() and path.stat().st_size:
        try:
            GGUF(path)
        except InputError:
            raise InputError(f"{path} is there and is no GGUF file; choose another name or remove it") from None
