"""A row of a batch as a person reads it: its pieces of documents, and which of their tokens are learnt from.

A target stands before the token that it is about: token t is learnt from if the target at t - 1 is supervised.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from pellucid.data.examples import IGNORE, Examples
from pellucid.layers.batch import PADDING
from pellucid.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Piece:
    """What a row holds of one document: its `tokens`, and which of them are `learnt` from.

    following: the token after them, which is learnt from though it is not in the row; None if there is no such.
    """

    tokens: tuple[int, ...]
    learnt: tuple[bool, ...]
    following: int | None

    @property
    def supervised(self) -> int:
        return sum(self.learnt) + (self.following is not None)


@dataclass(frozen=True, slots=True)
class Span:
    """Text of which all is learnt from or all is not. special: it is one control token."""

    text: str
    learnt: bool
    special: bool = False


def pieces_of(examples: Examples, row: int) -> list[Piece]:
    """The pieces of documents in a row, without padding."""
    tokens, targets = examples.tokens[row].tolist(), examples.targets[row].tolist()
    documents = examples.documents[row].tolist()
    pieces = []
    for document, group in groupby(range(len(tokens)), key=documents.__getitem__):
        if document == PADDING:
            continue
        places = list(group)
        learnt = (False, *(targets[place] != IGNORE for place in places[:-1]))
        last = targets[places[-1]]
        piece = tuple(tokens[place] for place in places)
        pieces.append(Piece(piece, learnt, None if last == IGNORE else last))
    return pieces


def spans_of(piece: Piece, tokenizer: Tokenizer) -> Iterator[Span]:
    """The text of a piece. What is no whole character stands as "\\xe4"."""
    special = set(tokenizer.special_tokens.values())
    marked = list(zip(piece.tokens, piece.learnt, strict=True))
    if piece.following is not None:
        marked.append((piece.following, True))
    for (learnt, is_special), group in groupby(marked, key=lambda one: (one[1], one[0] in special)):
        tokens = [token for token, _ in group]
        if is_special:
            for token in tokens:
                yield Span(tokenizer.token_bytes(token).decode("utf-8", "backslashreplace"), learnt, special=True)
        else:
            content = b"".join(map(tokenizer.token_bytes, tokens))
            yield Span(content.decode("utf-8", "backslashreplace"), learnt)
