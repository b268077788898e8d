"""`pellucid.load`: a model and its tokenizer, by path, hub id or packaged name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pellucid.checkpoints.assemble import parse_dtype
from pellucid.checkpoints.folder import read_folder
from pellucid.checkpoints.gguf_models import read_gguf
from pellucid.checkpoints.source import find_source
from pellucid.errors import InputError, PellucidError
from pellucid.models.decoder import Decoder
from pellucid.tokenizer.tokenizer import Tokenizer


def load(
    name_or_path: str | Path, *, dtype: str | torch.dtype = "auto", device: str = "cpu"
) -> tuple[Decoder, Tokenizer]:
    """The model and the tokenizer called `name_or_path`, ready to run (`model.eval()`).

    name_or_path: a Hugging Face folder, a run folder (the model that the run has come to), a `.gguf` file, a packaged
    name (`smollm2`) or a hub id (`owner/name`).
    dtype: "auto" for the checkpoint's own (float32 when it is quantised), "float32", "bfloat16" or "float16".

    Raises `InputError` that names what is wrong: the name, the file, the tensor.
    """
    wanted, source = parse_dtype(dtype), find_source(name_or_path)
    try:
        if source.kind == "gguf":
            model, tokenizer = read_gguf(source.path, wanted, device)
        else:
            model, tokenizer = read_folder(source.path, wanted, device)
    except InputError as error:
        if source.repository is None:
            raise
        raise PellucidError(
            f"the cached copy of {source.repository!r} cannot be read ({error}); remove {source.path} and load it again"
        ) from None
    tokenizer.more_stops = named_stops(model.generation_config)
    return model.eval(), tokenizer


def named_stops(generation_config: Mapping[str, Any]) -> tuple[int, ...]:
    """The tokens that a generation_config.json says end an answer: one, a list, or none."""
    ends = generation_config.get("eos_token_id")
    return () if ends is None else tuple(ends) if isinstance(ends, list) else (ends,)
