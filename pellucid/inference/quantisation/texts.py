"""The texts that quantising learns from and is measured on, as rows of token ids of one length."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from pellucid.data.sources import read_records
from pellucid.errors import InputError, PellucidError
from pellucid.inference.engine import Engine
from pellucid.inference.generate import drawable
from pellucid.inference.params import SamplingParams
from pellucid.models.config import ModelConfig
from pellucid.models.decoder import Decoder
from pellucid.tokenizer.tokenizer import Tokenizer

LENGTH = 512  # tokens of a row, or the model's context where that is shorter
FEWEST = 16  # tokens that a text must have
TOGETHER = 32  # samples that are written at a time


def row_length(config: ModelConfig) -> int:
    """Tokens of a row for such a model."""
    return min(LENGTH, config.max_positions)


def read_rows(source: str | Path, tokenizer: Tokenizer, length: int, rows: int) -> Tensor:
    """The first `rows` rows, (rows, length) int64, of the documents of a file, a folder or a bundled text, joined.

    There are fewer of them where the text is short, and a single shorter one where it is shorter than a row.
    Raises `InputError` for what is no text, and for a text of fewer than 16 tokens.
    """

    def documents() -> Iterator[list[int]]:
        for record in read_records([source], wanted="text"):
            yield tokenizer.encode(record.content, add_bos=tokenizer.adds_bos)

    return _rows(documents(), str(source), length, rows)


def own_rows(
    model: Decoder,
    tokenizer: Tokenizer,
    length: int,
    rows: int,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> Tensor:
    """Rows (rows, length) int64 of text that the model writes itself, from its start token, at temperature 1: what it
    reads when it runs, without any data (LLM-QAT: Liu et al. 2023, section 3.1).

    A model without a start token begins with a token drawn at random. progress: told of tokens written, and wanted.
    """
    engine = Engine(model, tokenizer, max_sequences=TOGETHER)
    generator, known = torch.Generator().manual_seed(seed), drawable(model, tokenizer)
    ids: list[int] = []
    while len(ids) < rows * length:
        missing = -(-(rows * length - len(ids)) // length)
        starts = torch.randint(known, (min(missing, TOGETHER),), generator=generator).tolist()
        if tokenizer.bos_id is not None:
            starts = [tokenizer.bos_id] * len(starts)
        ids += _samples(engine, starts, length, seed + len(ids), partial(_add, progress, len(ids), rows * length))
    return _rows([ids], "", length, rows)


def _add(progress: Callable[[int, int], None], before: int, whole: int, done: int) -> None:
    progress(before + done, whole)


def _samples(engine: Engine, starts: list[int], length: int, seed: int, progress: Callable[[int], None]) -> list[int]:
    """What the model writes after each of these tokens, up to `length` in all or its own end, one behind the other."""
    answers = {}
    for number, start in enumerate(starts):
        params = SamplingParams(temperature=1, max_tokens=length - 1, seed=seed + number)
        answers[engine.add([start], params)] = [start]
    while engine.busy:
        for event in engine.step():
            if event.finish_reason == "error":
                raise PellucidError(f"the model cannot write a text to learn from: {event.finish_detail}")
            answers[event.id].append(event.token_id)
        progress(sum(map(len, answers.values())))
    return [token for answer in answers.values() for token in answer]


def _rows(documents: Iterable[list[int]], name: str, length: int, rows: int) -> Tensor:
    """Documents one behind the other, cut into rows."""
    ids: list[int] = []
    for document in documents:
        ids += document
        if len(ids) >= rows * length:
            break
    if len(ids) < FEWEST:
        raise InputError(f"{name}: the text has {len(ids)} tokens, and at least {FEWEST} are needed: give a longer one")
    length = min(length, len(ids))
    rows = min(rows, len(ids) // length)
    return torch.tensor(ids[: rows * length]).view(rows, length)
