"""A model out of a GGUF file: `read_gguf`."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import torch

from pellucid.checkpoints.assemble import STORED, Named, assemble, check_tensors, keeps
from pellucid.checkpoints.gguf_config import architecture_of, read_config
from pellucid.checkpoints.gguf_names import IGNORED, expected_shapes, to_ours
from pellucid.checkpoints.gguf_read import GGUF, PLAIN
from pellucid.checkpoints.gguf_rope import exact
from pellucid.layers.quantised import Blocks
from pellucid.models.config import ModelConfig
from pellucid.models.decoder import Decoder
from pellucid.operations.blocks import BYTES
from pellucid.tokenizer.tokenizer import Tokenizer

# GGUF's names of generation defaults -> those of generation_config.json.
GENERATION = {
    "general.sampling.temp": "temperature",
    "general.sampling.top_k": "top_k",
    "general.sampling.top_p": "top_p",
    "general.sampling.min_p": "min_p",
    "general.sampling.penalty_repeat": "repetition_penalty",
    "tokenizer.ggml.bos_token_id": "bos_token_id",
    "tokenizer.ggml.eos_token_id": "eos_token_id",
    "tokenizer.ggml.padding_token_id": "pad_token_id",
}


def read_gguf(
    path: str | Path, dtype: torch.dtype | None = None, device: str = "cpu", quantize: str | None = None
) -> tuple[Decoder, Tokenizer]:
    """The model and tokenizer of a GGUF file. dtype None: the file's own, or float32 when it is quantised.

    quantize: as for `assemble`. Tensors that are stored in `dtype` and blocks that stay so remain in the mapped file;
    others are converted one by one.
    """
    file = GGUF(path)
    config, architecture = check_gguf(file), architecture_of(file)

    def read(name: str) -> Named:
        info = file.tensors[name]
        if len(info.shape) != 2 or not keeps(quantize, info.format.name):
            return to_ours(config, architecture, name, file.tensor(name))
        # Rows are whole blocks: what moves rows moves those of blocks too.
        rows = to_ours(config, architecture, name, file.blocks(name))
        return {ours: Blocks(blocks, info.format.name) for ours, blocks in rows.items()}

    names = [name for name in file.tensors if name not in IGNORED]
    model = assemble(config, names, read, dtype or own_dtype(file), device, quantize)
    if quantize == STORED:
        say_what_is_widened(file, model.dtype)
    model.generation_config = generation_config(file)
    return model, Tokenizer.from_gguf(file.metadata)


def say_what_is_widened(file: GGUF, dtype: torch.dtype) -> None:
    """A warning where matrices lie in formats that are not computed with as they lie."""
    others = [info for info in file.tensors.values() if len(info.shape) == 2 and info.format.name not in BYTES | PLAIN]
    if others:
        formats = ", ".join(sorted({info.format.name for info in others}))
        size = sum(math.prod(info.shape) for info in others) * dtype.itemsize
        warnings.warn(
            f"{len(others)} matrices of {file.path.name} lie in {formats}, which are not computed with as they lie: "
            f"they are widened to {str(dtype).removeprefix('torch.')}, {size / 2**20:.0f} MiB",
            stacklevel=2,
        )


def check_gguf(file: GGUF) -> ModelConfig:
    """The config of a file all of whose tensors are there, in the shapes that it asks for."""
    config = read_config(file)
    seen = {name: info.shape for name, info in file.tensors.items() if name not in IGNORED}
    check_tensors(seen, expected_shapes(config, architecture_of(file)), file.path)
    return config


def own_dtype(file: GGUF) -> torch.dtype:
    """The dtype of a file's matrices; float32 when they are quantised or of several."""
    formats = {info.format.name for info in file.tensors.values() if len(info.shape) > 1}
    return PLAIN.get(formats.pop(), torch.float32) if len(formats) == 1 else torch.float32


def generation_config(file: GGUF) -> dict[str, Any]:
    """The defaults of generation that the file carries, named as in `generation_config.json`."""
    found = {ours: file.metadata[theirs] for theirs, ours in GENERATION.items() if theirs in file.metadata}
    return {name: exact(value) if isinstance(value, float) else value for name, value in found.items()}
