r"""Byte-level BPE in native code (`bpe.cpp`): the ids of `bpe.py`, several times as fast, or none at all.

The published split patterns are followed natively, on a table of what each character is to them (`\p{Lu}`, `\s` ...),
which is made here with the `regex` package, so that both paths know the same Unicode. Any other pattern splits in
Python, and its pre-tokens are merged natively.
"""

from __future__ import annotations

import ctypes
import weakref
from array import array
from collections.abc import Sequence
from functools import cache
from itertools import chain
from pathlib import Path

import regex

from pellucid.tokenizer.patterns import PATTERNS, Splitter

SOURCE = Path(__file__).with_name("bpe.cpp")

# The enumerations and the struct `Rules` of bpe.cpp.
_AFTER_SPACE, _AFTER_ANY, _CASED = range(3)
_NONE, _SMALL_FIRST, _ANY_FIRST, _ANY_AFTER_WORD = range(4)
_KINDS: dict[int, regex.Pattern[str]] = {  # bit -> the characters; SYMBOL (1) is what none of them holds
    2: regex.compile(r"[^\S\r\n]+"),
    4: regex.compile(r"[\r\n]+"),
    8: regex.compile(r"[\p{Lu}\p{Lt}]+"),
    16: regex.compile(r"\p{Ll}+"),
    32: regex.compile(r"[\p{Lm}\p{Lo}]+"),
    64: regex.compile(r"\p{M}+"),
    128: regex.compile(r"\p{N}+"),
}


class Rules(ctypes.Structure):
    """What tells the published patterns apart."""

    _fields_ = tuple(
        (name, ctypes.c_int32)
        for name in ("words", "contractions", "digits", "numbers_apart", "marks_in_words", "breaks")
    )


_RULES = {
    "gpt2": (_AFTER_SPACE, _SMALL_FIRST, 0, 0, 0, 0),
    "smollm": (_AFTER_SPACE, _SMALL_FIRST, 1, 1, 0, 0),
    "cl100k": (_AFTER_ANY, _ANY_FIRST, 3, 0, 0, 1),
    "qwen2": (_AFTER_ANY, _ANY_FIRST, 1, 0, 0, 1),
    "qwen35": (_AFTER_ANY, _ANY_FIRST, 1, 0, 1, 1),
    "o200k": (_CASED, _ANY_AFTER_WORD, 3, 0, 0, 2),
    "tekken": (_CASED, _NONE, 1, 0, 0, 2),
}
_RULES_OF = {PATTERNS[name]: Rules(*rules) for name, rules in _RULES.items()}


class NativeEncoder:
    """A `BytePairEncoder` (which see) in native code. Safe to use from several threads, which run at the same time."""

    def __init__(
        self,
        library: ctypes.CDLL,
        vocab: dict[bytes, int],
        merges: Sequence[tuple[bytes, bytes]] | None,
        splitter: Splitter,
        *,
        ignore_merges: bool,
    ) -> None:
        self._splitter = splitter
        self._encode, self._encode_pieces = library["bpe_encode"], library["bpe_encode_pieces"]
        self._encode.restype = self._encode_pieces.restype = ctypes.c_int64
        rules = _RULES_OF.get(splitter.sources)
        self._splits = rules is not None
        parts = list(chain.from_iterable(merges or ()))
        lengths, ids = array("I", map(len, vocab)), array("i", vocab.values())
        part_lengths = array("I", map(len, parts))
        new = library["bpe_new"]
        new.restype = ctypes.c_void_p
        self._handle = ctypes.c_void_p(
            new(
                b"".join(vocab),
                _address(lengths),
                _address(ids),
                ctypes.c_int64(len(ids)),
                b"".join(parts),
                _address(part_lengths),
                ctypes.c_int64(-1 if merges is None else len(merges)),
                ctypes.c_int32(ignore_merges),
                ctypes.byref(rules or Rules()),
            )
        )
        weakref.finalize(self, library["bpe_free"], self._handle).atexit = False

    def __deepcopy__(self, memo: object) -> NativeEncoder:
        return self  # it never changes, but for what it remembers

    def encode(self, text: str) -> list[int] | None:
        """The ids; None if a byte has no token. UnicodeEncodeError for a lone surrogate, which UTF-8 cannot hold."""
        utf8 = text.encode()
        length = ctypes.c_int64(len(utf8))
        out = array("i", bytes(4 * len(utf8)))
        if self._splits:
            kinds = unicode_table(0x80 if len(utf8) == len(text) else 0x110000)
            count = self._encode(self._handle, utf8, length, kinds, _address(out))
        else:
            lengths = array("I", map(len, map(str.encode, self._splitter.pretokens(text))))
            count = self._encode_pieces(self._handle, utf8, length, _address(lengths), _address(out))
        return None if count < 0 else out[:count].tolist()


def _address(numbers: array[int]) -> ctypes.c_void_p:
    return ctypes.c_void_p(numbers.buffer_info()[0])


@cache
def unicode_table(end: int) -> bytes:
    """What each character up to `end` is to the patterns: one byte a code point."""
    characters = array("I", range(end)).tobytes().decode("utf-32", "surrogatepass")
    table = bytearray(b"\1" * end)
    for assigned in regex.finditer(r"[\p{L}\p{M}\p{N}\s]+", characters):  # an eighth of all
        for kind, members in _KINDS.items():
            for start, stop in (found.span() for found in members.finditer(characters, *assigned.span())):
                table[start:stop] = bytes([kind]) * (stop - start)
    return bytes(table)
