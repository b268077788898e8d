"""What quantising has cost and brought: measured on the files that were written, on this machine (promise I11)."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pellucid.checkpoints.describe import describe
from pellucid.checkpoints.load import load, to_run
from pellucid.checkpoints.source import bytes_on_disk, find_source
from pellucid.inference.quantisation.compare import Difference, compare, tokens_per_second
from pellucid.inference.quantisation.texts import read_rows, row_length
from pellucid.inference.room import free_memory
from pellucid.models.decoder import Decoder
from pellucid.models.quantised import weight_bytes
from pellucid.operations.hardware import best_precision
from pellucid.tokenizer.tokenizer import Tokenizer

TEXT = "bundled:state-of-the-union"
ROWS = 16  # of 512 tokens
PROMPT = 16  # tokens of the text that the speed is measured behind


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two models. disk: bytes of its file or folder. memory: form -> bytes of weights, as it runs here by
    default. tokens_per_second: one request through the engine, so run."""

    disk: int
    memory: dict[str, int]
    tokens_per_second: float


@dataclass(frozen=True, slots=True)
class Report:
    """Both models, and how far they are apart on a text; `precision` is what that was computed in."""

    before: Side
    after: Side
    difference: Difference
    text: str
    precision: str


def rows_to_judge(source: str, text: str | None) -> Tensor:
    """What a model is judged on, (rows, tokens). text: a file, a folder or a bundled text; None: State of the Union.

    Raises `InputError` for a text that cannot be read, or is too short.
    """
    told = describe(source)
    return read_rows(text or TEXT, told.tokenizer, row_length(told.config), ROWS)


def measure(
    source: str,
    target: Path,
    rows: Tensor,
    text: str | None,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Report:
    """Loads both models and compares them on the rows of a text.

    progress: told of the phase, and how much of it is done and to be done.
    """
    progress("reading both", 0, 1)
    original, _ = load(source, dtype=working_dtype(source))
    quantised, _ = load(target, dtype=original.dtype, quantize="stored")
    difference = compare(original, quantised, rows, lambda done, of: progress("comparing", done, of))
    precision = str(original.dtype).removeprefix("torch.")
    del original, quantised
    prompt = rows[0, : min(PROMPT, rows.shape[1] // 2)].tolist()
    sides = []
    for number, name in enumerate((source, str(target))):
        gc.collect()  # what the one before held is free
        progress("timing", number, 2)
        sides.append(_side(name, prompt))
    progress("timing", 2, 2)
    return Report(sides[0], sides[1], difference, text or TEXT, precision)


def _side(name: str, prompt: list[int]) -> Side:
    model, tokenizer = as_it_runs(name)
    return Side(bytes_on_disk(find_source(name).path), weight_bytes(model), tokens_per_second(model, tokenizer, prompt))


def as_it_runs(name: str) -> tuple[Decoder, Tokenizer]:
    """A model in the form that `chat` and `serve` give it here, unless told otherwise."""
    return load(name, dtype=best_precision("auto").name, quantize=to_run(None, "auto"))


def working_dtype(source: str) -> str:
    """What a model is quantised and compared in: float32, or its own type where memory has no room for two of it."""
    parameters = sum(describe(source).parameters.values())
    return "float32" if 2 * 4 * parameters < free_memory(torch.device("cpu")) else "auto"
