"""The alphabet in which byte-level vocabularies are written: one printable character for each of the 256 bytes.

From GPT-2 (Radford et al. 2019): a byte that Latin-1 prints stands for itself; the other 68, in order, are the
characters from U+0100 on (so the space is "Ġ" and the newline "Ċ").
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

from pellucid.errors import InputError

PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
HIDDEN = [byte for byte in range(256) if byte not in PRINTABLE]

CHARACTER_OF = {byte: chr(byte) for byte in PRINTABLE} | {byte: chr(0x100 + n) for n, byte in enumerate(HIDDEN)}
BYTE_OF = {character: byte for byte, character in CHARACTER_OF.items()}
ALPHABET = frozenset(BYTE_OF)


def to_alphabet(token: bytes) -> str:
    """How a byte-level vocabulary spells these bytes."""
    return "".join(map(CHARACTER_OF.__getitem__, token))


def from_alphabet(token: str) -> bytes:
    """The bytes that a token of a byte-level vocabulary stands for. Raises InputError for a character outside it."""
    try:
        return bytes(map(BYTE_OF.__getitem__, token))
    except KeyError as error:
        raise InputError(f"the token {token!r} holds {error.args[0]!r}, which stands for no byte") from None


def all_from_alphabet(tokens: Sequence[str]) -> list[bytes]:
    """`from_alphabet` of each, in one go: a vocabulary has a hundred thousand."""
    try:
        whole = from_alphabet("".join(tokens))  # a byte a character
    except InputError:
        return [from_alphabet(token) for token in tokens]  # the error names the token
    borders = accumulate(map(len, tokens), initial=0)
    return [whole[start:stop] for start, stop in pairwise(borders)]
