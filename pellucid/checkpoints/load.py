"""`pellucid.load`: a model and its tokenizer, by path, hub id or packaged name."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pellucid.checkpoints.adapters import AdapterFolder, load_adapter, open_adapter
from pellucid.checkpoints.assemble import AS_NF4, IN_NF4, STORED, parse_dtype, parse_quantize
from pellucid.checkpoints.folder import read_folder
from pellucid.checkpoints.gguf_models import read_gguf
from pellucid.checkpoints.source import ADAPTER_CONFIG, find_source
from pellucid.errors import InputError, PellucidError
from pellucid.models.adapters import adapter_names, merge_adapter
from pellucid.models.classifier import Classifier
from pellucid.models.decoder import Decoder
from pellucid.operations.step import why_not
from pellucid.tokenizer.tokenizer import Tokenizer


def load(
    name_or_path: str | Path,
    *,
    dtype: str | torch.dtype = "auto",
    device: str = "cpu",
    quantize: str | None = None,
) -> tuple[Decoder, Tokenizer]:
    """The model and the tokenizer called `name_or_path`, ready to run (`model.eval()`).

    name_or_path: a Hugging Face folder, a run folder (the model that the run has come to), a `.gguf` file, a packaged
    name (`smollm2`) or a hub id (`owner/name`). A PEFT folder: the base that it names, with the adapter beside it.
    dtype: "auto" for the checkpoint's own (float32 when it is quantised), "float32", "bfloat16" or "float16".
    quantize: None: the weights are numbers of `dtype`, to train, save and convert. "stored": matrices that lie in
    blocks of integers (Q8_0, Q4_0, Q4_1) stay so, and `dtype` is what the rest is computed in. "int8", "int4" or one
    of these formats: matrices are rounded to it as they are read. "nf4": those of the blocks are (QLoRA).

    Raises `InputError` that names what is wrong: the name, the file, the tensor; for a reward model, which writes no
    text (`load_classifier`).
    """
    model, tokenizer = _read(name_or_path, dtype, device, quantize)
    if isinstance(model, Classifier):
        raise InputError(
            f"{name_or_path} gives texts a score and writes none: give the model that it was made to judge"
        )
    return model, tokenizer


def load_classifier(
    name_or_path: str | Path, *, dtype: str | torch.dtype = "auto", device: str = "cpu"
) -> tuple[Classifier, Tokenizer]:
    """The model that gives texts a score and its tokenizer, from a `*ForSequenceClassification` folder, a run folder or
    a hub id; as for `load`. Raises `InputError` for a model that writes text."""
    model, tokenizer = _read(name_or_path, dtype, device, None)
    if not isinstance(model, Classifier):
        raise InputError(
            f"{name_or_path} writes text and gives none a score: give a reward model, which pellucid reward makes"
        )
    return model, tokenizer


def _read(
    name_or_path: str | Path, dtype: str | torch.dtype, device: str, quantize: str | None, above: Sequence[Path] = ()
) -> tuple[Decoder, Tokenizer]:
    """above: adapters whose base this is."""
    wanted, rounded, source = parse_dtype(dtype), parse_quantize(quantize), find_source(name_or_path)
    try:
        if source.kind == "gguf":
            model, tokenizer = read_gguf(source.path, wanted, device, rounded)
        elif source.kind == "adapter":
            model, tokenizer = _read_adapted(source.path, dtype, device, quantize, above)
        else:
            model, tokenizer = read_folder(source.path, wanted, device, rounded)
    except InputError as error:
        if source.repository is None or source.kind == "adapter":  # which says itself what is wrong, or its base does
            raise
        raise PellucidError(
            f"the cached copy of {source.repository!r} cannot be read ({error}); remove {source.path} and load it again"
        ) from None
    tokenizer.more_stops = named_stops(model.generation_config)
    return model.eval(), tokenizer


def _read_adapted(
    path: Path, dtype: str | torch.dtype, device: str, quantize: str | None, above: Sequence[Path]
) -> tuple[Decoder, Tokenizer]:
    """The base that an adapter names, with the adapter; rounded as it was beside it, unless another form is asked for.

    An adapter that was trained beside another one has that one merged into its base.
    """
    found = open_adapter(path)
    name = base_name(found, above)
    if found.fields.get("revision") not in (None, "", "main"):
        warnings.warn(
            f"{path} was made for {name!r} in its revision {found.fields['revision']!r}; the one that is there is "
            "taken, whichever it is",
            stacklevel=4,
        )
    if found.quantize == IN_NF4 and quantize in (None, STORED):
        quantize = AS_NF4
    model, tokenizer = _read(name, dtype, device, quantize, (*above, path.resolve()))
    for earlier in adapter_names(model):
        merged = merge_adapter(model, earlier)
        if model.dtype != torch.float32:
            warnings.warn(
                f"{name}, on which {path} was trained, was merged into its base in {model.dtype}: logits as large as "
                f"{merged.spread:.3g} moved by up to {merged.largest:.2g}; load it in float32 where that matters",
                stacklevel=4,
            )
    if (path / "tokenizer.json").is_file():
        tokenizer = Tokenizer.load(path)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise InputError(
            f"{path} has a tokenizer of {tokenizer.vocab_size} tokens, and its base {found.base!r} has embeddings for "
            f"{model.config.vocab_size}: give the adapter the base that it was trained with"
        )
    load_adapter(model, path)
    return model, tokenizer


def base_name(found: AdapterFolder, above: Sequence[Path] = ()) -> str:
    """The name of an adapter's base, which is there. above: adapters whose base this one is, resolved.

    Raises `PellucidError` where it is not there, `InputError` where it names itself or one of these.
    """
    path = found.path
    if not found.base:
        raise InputError(f"{path} does not say what its base is: set base_model_name_or_path in {ADAPTER_CONFIG}")
    try:
        source = find_source(found.base)
    except PellucidError as error:
        raise type(error)(
            f"{path} was made for the base {found.base!r}, which is not to be had ({error}): put it there, or set "
            f"base_model_name_or_path in {ADAPTER_CONFIG}"
        ) from None
    if source.path.resolve() in (path.resolve(), *above):
        around = " in a circle" if above else ""
        raise InputError(f"{path} names itself as its base{around}: set base_model_name_or_path in {ADAPTER_CONFIG}")
    return found.base


def to_run(quantize: str | None, dtype: str) -> str | None:
    """`load`'s quantize for a model that will only be run, on the CPU: matrices that lie in blocks of integers stay so,
    unless another form or a type is asked for, or there is no native step to read them (PyTorch would widen them anew
    in every step)."""
    return STORED if quantize is None and dtype == "auto" and why_not(torch.float32) is None else quantize


def named_stops(generation_config: Mapping[str, Any]) -> tuple[int, ...]:
    """The tokens that a generation_config.json says end an answer: one, a list, or none."""
    ends = generation_config.get("eos_token_id")
    return () if ends is None else tuple(ends) if isinstance(ends, list) else (ends,)
