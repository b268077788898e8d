"""A row as a person reads it: every token once, and what is marked is what the loss is taken over."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pellucid.data.examples import IGNORE, Examples
from pellucid.data.shown import Piece, Span, pieces_of, spans_of
from pellucid.tokenizer.tokenizer import Tokenizer
from pellucid.tokenizer.train import train_bpe

documents = st.lists(st.lists(st.tuples(st.integers(0, 90), st.booleans()), min_size=1, max_size=5), max_size=4)


def row_of(pieces: list[list[tuple[int, bool]]], padding: int, after: int | None) -> Examples:
    """One row that holds these documents (tokens, and whether each is learnt from); `after`: the next token's id."""
    tokens, targets, positions, numbers = [], [], [], []
    for number, piece in enumerate(pieces):
        ids = [token for token, _ in piece]
        tokens += ids
        targets += [token if learnt else IGNORE for token, learnt in piece[1:]] + [IGNORE]
        positions += range(len(ids))
        numbers += [number] * len(ids)
    if after is not None and tokens:
        targets[-1] = after
    fill = [[0] * padding, [IGNORE] * padding, [0] * padding, [-1] * padding]
    rows = [[*row, *rest] for row, rest in zip((tokens, targets, positions, numbers), fill, strict=True)]
    return Examples(*(torch.tensor([row], dtype=torch.int64) for row in rows))


@given(documents, st.integers(0, 3), st.none() | st.integers(0, 90))
def test_every_token_once_and_what_is_marked_is_supervised(
    given: list[list[tuple[int, bool]]], padding: int, after: int | None
) -> None:
    examples = row_of(given, padding, after)
    pieces = pieces_of(examples, 0)
    assert [list(piece.tokens) for piece in pieces] == [[token for token, _ in one] for one in given]
    assert [piece.learnt for piece in pieces] == [(False, *(learnt for _, learnt in one[1:])) for one in given]
    assert sum(piece.supervised for piece in pieces) == examples.supervised
    assert [piece.following for piece in pieces][-1:] == ([after] if given else [])


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(["the baker bakes"], 262, special_tokens=["<|end|>"]).tokenizer()


def test_spans(tokenizer: Tokenizer) -> None:
    (end,) = tokenizer.special_tokens.values()
    ids = [*tokenizer.encode("é<|end|>"), end, *tokenizer.encode("the"), end]
    learnt = (
        [False] * (len(ids) - 2 - len(tokenizer.encode("the"))) + [False] + [True] * (len(tokenizer.encode("the")) + 1)
    )
    spans = list(spans_of(Piece(tuple(ids), tuple(learnt), 0 if end else 1), tokenizer))
    assert spans[:4] == [
        Span("é<|end|>", False),  # text that spells a control token is none
        Span("<|end|>", False, special=True),
        Span("the", True),
        Span("<|end|>", True, special=True),
    ]
    assert len(spans) == 5 and spans[4].learnt  # the token that follows


def test_half_a_character_is_shown_as_its_bytes(tokenizer: Tokenizer) -> None:
    first, second = tokenizer.encode("é")
    (one, two) = spans_of(Piece((first, second), (False, True), None), tokenizer)
    assert (one, two) == (Span(r"\xc3", False), Span(r"\xa9", True))
