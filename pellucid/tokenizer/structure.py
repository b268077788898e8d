"""Which stretches of a rendered chat are tokens of its structure, and the ids of it all.

A *structural* token is a control token, or an added token that the template itself writes (`<think>`, `<tool_call>`;
whitespace is none). Only scaffold makes one, with an exception: a model's own words, in messages of the assistant, may
hold structural tokens that are no control tokens. Other added tokens (runs of spaces, HTML tags) are a way to spell
text, and are left to the tokenizer.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import compress, pairwise
from operator import not_
from typing import NamedTuple, Protocol

from pellucid.errors import InputError
from pellucid.tokenizer.added import AddedToken
from pellucid.tokenizer.conversation import Ledger
from pellucid.tokenizer.provenance import SCAFFOLD, UNKNOWN, Traced
from pellucid.tokenizer.sandbox import literals_of


class ChatTokenizer(Protocol):
    """What a tokenizer has that chats need."""

    @property
    def templates(self) -> Mapping[str, str]: ...
    @property
    def added(self) -> Sequence[AddedToken]: ...
    @property
    def bos_id(self) -> int | None: ...
    @property
    def eos_id(self) -> int | None: ...
    @property
    def pad_id(self) -> int | None: ...
    @property
    def stop_ids(self) -> tuple[int, ...]: ...
    def encode(self, text: str, *, allow_special: bool = False) -> list[int]: ...
    def token_bytes(self, token: int) -> bytes: ...


class Piece(NamedTuple):
    """A stretch of rendered text: one structural token (`id`), or text between them (`id` None)."""

    start: int
    stop: int
    id: int | None


@lru_cache(maxsize=16)
def pattern_of(tokens: frozenset[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or "(?!)")


class Splitter:
    """Finds the structural tokens in a rendered chat: those that the template wrote, none that was talked into it."""

    def __init__(self, tokenizer: ChatTokenizer, template: str, text: Traced, ledger: Ledger) -> None:
        """`text` is what `template` renders the conversation of `ledger` to."""
        scaffold = "".join(compress(str.__str__(text), map(not_, text.origins)))  # SCAFFOLD is 0
        written = "\0".join([*sorted(literals_of(template)), scaffold])
        self.tokens = {
            token.content: token
            for token in tokenizer.added
            if token.content and (token.special or (token.content in written and not token.content.isspace()))
        }
        self.ids = frozenset(token.id for token in self.tokens.values())
        self.controls = frozenset(token.id for token in self.tokens.values() if token.special)
        self.pattern = pattern_of(frozenset(self.tokens))
        self.forged: list[int] = []  # where the conversation spells a structural token
        self._ledger = ledger

    def split(self, text: Traced) -> list[Piece]:
        """The whole of `text`, in order."""
        return list(self._split(text, str.__str__(text)))

    def _split(self, text: Traced, plain: str) -> Iterator[Piece]:
        done = position = 0
        while match := self.pattern.search(plain, position):
            start = match.start()
            token = self._longest_allowed(text, start, match.group())
            if token is None:
                self.forged.append(start)
                position = start + 1
                continue
            position = start + len(token.content)
            if token.rstrip:
                position = len(plain) - len(plain[position:].lstrip())
            if token.lstrip:
                start = max(done, len(plain[:start].rstrip()))
            if start > done:
                yield Piece(done, start, None)
            yield Piece(start, position, token.id)
            done = position
        if done < len(plain):
            yield Piece(done, len(plain), None)

    def _longest_allowed(self, text: Traced, start: int, found: str) -> AddedToken | None:
        for length in range(len(found), 0, -1):
            token = self.tokens.get(found[:length])
            if token and self._allowed(token, text.origins[start : start + length]):
                return token
        return None

    def _allowed(self, token: AddedToken, origins: array[int]) -> bool:
        if all(origin == SCAFFOLD for origin in origins):
            return True
        if UNKNOWN in origins:
            raise InputError(
                f"the chat template mixes its own text and the conversation's beyond telling around {token.content!r}: "
                "take that text out of the conversation"
            )
        if token.special:
            return False
        sources = {self._ledger.source(origin) for origin in origins}
        return len(sources) == 1 and all(source is not None and source.own_words for source in sources)


def encode_pieces(
    tokenizer: ChatTokenizer, text: Traced, pieces: Sequence[Piece], splitter: Splitter
) -> list[list[int]]:
    """The ids of each piece.

    A text without forgeries is encoded as a whole, which is what transformers does, and taken apart at the structural
    ids. One with forgeries is encoded piece by piece.
    """
    if not splitter.forged:
        grouped = grouped_ids(tokenizer.encode(str.__str__(text), allow_special=True), pieces, splitter)
        if grouped is not None:
            return grouped
    encoded: list[list[int]] = []
    for piece in pieces:
        if piece.id is not None:
            encoded.append([piece.id])
        else:
            cuts = [cut + 1 for cut in splitter.forged if piece.start <= cut < piece.stop]
            encoded.append(encode_text(tokenizer, str.__str__(text), [piece.start, *cuts, piece.stop], splitter))
    return encoded


def grouped_ids(ids: list[int], pieces: Sequence[Piece], splitter: Splitter) -> list[list[int]] | None:
    """`ids` of the whole text as lists, one a piece; None if the structural ids are not those of the pieces."""
    groups: list[list[int]] = []
    position = 0
    for piece in pieces:
        start = position
        if piece.id is not None:
            if ids[position : position + 1] != [piece.id]:
                return None
            position += 1
        else:
            while position < len(ids) and ids[position] not in splitter.ids:
                position += 1
        groups.append(ids[start:position])
    return groups if position == len(ids) else None


def encode_text(tokenizer: ChatTokenizer, text: str, borders: Sequence[int], splitter: Splitter) -> list[int]:
    """Plain text: whole where the tokenizer sees no structural token in it, else broken inside each forged one.

    A tokenizer may put a space before a text; text inside a chat has a newline put before it instead, and taken away.
    """
    newline = tokenizer.encode("\n")

    def encode(start: int, stop: int) -> list[int]:
        ids = tokenizer.encode("\n" + text[start:stop])
        inside = start > 0 and ids[: len(newline)] == newline
        return ids[len(newline) :] if inside else tokenizer.encode(text[start:stop])

    ids = encode(borders[0], borders[-1])
    if splitter.ids.isdisjoint(ids):
        return ids
    ids = [token for start, stop in pairwise(borders) for token in encode(start, stop)]
    if not splitter.ids.isdisjoint(ids):
        raise InputError(
            "the tokenizer makes a control token of plain text in this conversation: take that text out of it"
        )
    return ids
