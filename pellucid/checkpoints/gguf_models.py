"""A model out of a GGUF file: `read_gguf`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pellucid.checkpoints.assemble import Named, assemble, read_all
from pellucid.checkpoints.gguf_config import architecture_of, read_config
from pellucid.checkpoints.gguf_names import to_ours
from pellucid.checkpoints.gguf_read import GGUF, PLAIN
from pellucid.checkpoints.gguf_rope import exact
from pellucid.errors import InputError
from pellucid.models.decoder import Decoder
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


def read_gguf(path: str | Path, dtype: torch.dtype | None = None, device: str = "cpu") -> tuple[Decoder, Tokenizer]:
    """The model and tokenizer of a GGUF file. dtype None: the file's own, or float32 when it is quantised.

    Tensors that are stored in `dtype` stay in the mapped file; others are converted one by one.
    """
    file = GGUF(path)
    config, architecture = read_config(file), architecture_of(file)
    dtype = dtype or own_dtype(file)

    def read(name: str) -> Named:
        try:
            parts = to_ours(config, architecture, name, file.tensor(name))
        except InputError as error:
            raise InputError(f"{file.path}: {error}") from None
        return {ours: tensor.to(dtype) for ours, tensor in parts.items()}

    model = assemble(config, read_all(file.tensors, read), dtype, device, file.path)
    model.generation_config = generation_config(file)
    return model, Tokenizer.from_gguf(file.metadata)


def own_dtype(file: GGUF) -> torch.dtype:
    """The dtype of a file's matrices; float32 when they are quantised or of several."""
    formats = {info.format.name for info in file.tensors.values() if len(info.shape) > 1}
    return PLAIN.get(formats.pop(), torch.float32) if len(formats) == 1 else torch.float32


def generation_config(file: GGUF) -> dict[str, Any]:
    """The defaults of generation that the file carries, named as in `generation_config.json`."""
    found = {ours: file.metadata[theirs] for theirs, ours in GENERATION.items() if theirs in file.metadata}
    return {name: exact(value) if isinstance(value, float) else value for name, value in found.items()}
