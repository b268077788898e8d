"""What each id reads as: bytes that need only be joined.

The `decoder` of a tokenizer.json is a chain of steps over a whole list of tokens. Every chain that is in use comes down
to one string of bytes for each token, and another for a token that begins the text (whose joining space falls away).
That is what makes streaming exact: a token's bytes do not depend on what follows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pellucid.errors import InputError
from pellucid.tokenizer.added import AddedToken
from pellucid.tokenizer.alphabet import from_alphabet

BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")

# What WordPiece's `cleanup` takes back from a token that joins with a space (the table of the `tokenizers` library).
CLEANUP = {
    " .": ".",
    " ?": "?",
    " !": "!",
    " ,": ",",
    " ' ": "'",
    " n't": "n't",
    " 'm": "'m",
    " do not": " don't",
    " 's": "'s",
    " 've": "'ve",
    " 're": "'re",
}


class Pieces(dict[int, bytes]):
    """id -> bytes, filled as ids are met; `first(id)` for the token that begins a text."""

    def __init__(
        self, contents: Mapping[int, str], added: Iterable[AddedToken], decoder: dict[str, Any] | None
    ) -> None:
        """contents: every id with the token as its file spells it. Raises InputError for a decoder step we lack."""
        super().__init__()
        self.contents = contents
        self.added = {token.id for token in added}
        self.special = frozenset(token.id for token in added if token.special)
        self.steps = decoder_steps(decoder)

    def __missing__(self, token: int) -> bytes:
        self[token] = piece = self.read(token, begins=False)
        return piece

    def first(self, token: int) -> bytes:
        return self.read(token, begins=True)

    def join(self, tokens: Iterable[int]) -> bytes:
        """The bytes of a whole text."""
        rest = iter(tokens)
        for token in rest:
            return self.first(token) + b"".join(map(self.__getitem__, rest))
        return b""

    def read(self, token: int, begins: bool) -> bytes:
        content = self.contents.get(token)
        if content is None:
            raise InputError(f"there is no token {token!r}: ids run from 0 to {max(self.contents)}")
        piece: str | bytes = content
        for step in self.steps:
            if isinstance(piece, bytes):  # a byte token is final but for the strip at the beginning
                if step["type"] == "Strip" and begins:
                    piece = strip(piece.decode("latin-1"), step).encode("latin-1")
            elif step["type"] == "ByteLevel":
                piece = content.encode() if token in self.added else from_alphabet(content)
            else:
                piece = STEPS[step["type"]](piece, step, begins)
        return piece if isinstance(piece, bytes) else piece.encode()


def decoder_steps(decoder: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a tokenizer.json's `decoder`, checked to be ones that we honour."""
    if decoder is None:
        return [{"type": "Join"}]
    steps = decoder.get("decoders", []) if decoder.get("type") == "Sequence" else [decoder]
    for step in steps:
        kind = step.get("type")
        if kind not in STEPS and kind != "ByteLevel":
            raise InputError(f"the tokenizer decodes with {kind!r}, which needs the tokens that follow: not supported")
        if kind == "Replace" and "String" not in step.get("pattern", {}):
            raise InputError(
                f"the tokenizer decodes with the pattern {step.get('pattern')!r}; only strings are supported"
            )
        if kind == "Strip" and step.get("stop"):
            raise InputError("the tokenizer's decoder strips the end of the text, which a stream cannot: not supported")
    return steps


def byte_fallback(piece: str, step: dict[str, Any], begins: bool) -> str | bytes:
    match = BYTE.fullmatch(piece)
    return bytes([int(match.group(1), 16)]) if match else piece


def strip(piece: str, step: dict[str, Any], begins: bool = True) -> str:
    for _ in range(step.get("start", 0) if begins else 0):
        piece = piece.removeprefix(step["content"])
    return piece


def metaspace(piece: str, step: dict[str, Any], begins: bool) -> str:
    replacement = step.get("replacement", "▁")
    if begins and step.get("prepend_scheme", "always") != "never" and step.get("add_prefix_space", True):
        piece = piece.removeprefix(replacement)
    return piece.replace(replacement, " ")


def word_piece(piece: str, step: dict[str, Any], begins: bool) -> str:
    prefix = step.get("prefix", "##")
    if not begins:
        piece = piece.removeprefix(prefix) if piece.startswith(prefix) else f" {piece}"
    if step.get("cleanup", True):
        for seen, wanted in CLEANUP.items():
            piece = piece.replace(seen, wanted)
    return piece


STEPS: dict[str, Callable[[str, dict[str, Any], bool], str | bytes]] = {
    "Replace": lambda piece, step, begins: piece.replace(step["pattern"]["String"], step["content"]),
    "ByteFallback": byte_fallback,
    "Fuse": lambda piece, step, begins: piece,
    "Strip": strip,
    "Metaspace": metaspace,
    "WordPiece": word_piece,
    "Join": lambda piece, step, begins: piece if begins else f" {piece}",
}
