"""A model out of a GGUF file: `read_gguf`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pellucid.checkpoints.assemble import assemble, check_tensors
from pellucid.checkpoints.gguf_config import architecture_of, read_config
from pellucid.checkpoints.gguf_names import IGNORED, expected_shapes, to_ours
from pellucid.checkpoints.gguf_read import GGUF, PLAIN
from pellucid.checkpoints.gguf_rope import exact
from pellucid.models.config import ModelConfig
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
    config, architecture = check_gguf(file), architecture_of(file)
    names = [name for name in file.tensors if name not in IGNORED]
    model = assemble(
        config,
        names,
        lambda name: to_ours(config, architecture, name, file.tensor(name)),
        dtype or own_dtype(file),
        device,
    )
    model.generation_config = generation_config(file)
    return model, Tokenizer.from_gguf(file.metadata)


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
