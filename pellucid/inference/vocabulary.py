"""A tokenizer's vocabulary as bytes, in order: which tokens begin with given bytes, which contain them?"""

from __future__ import annotations

import re
from bisect import bisect_left
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pellucid.tokenizer.tokenizer import Tokenizer

Made = TypeVar("Made")

BORDER = b"\xff"  # in no UTF-8 text


class Vocabulary:
    """Every token's bytes, as it continues a text; ids that the tokenizer has no token for are empty.

    Made once for a tokenizer: `of`.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.special = frozenset(tokenizer.special_tokens.values())
        self.bytes = [_bytes(tokenizer, token) for token in range(tokenizer.vocab_size)]
        self._made: dict[object, object] = {}

    @staticmethod
    def of(tokenizer: Tokenizer) -> Vocabulary:
        """The vocabulary of a tokenizer, the same one at every call."""
        if tokenizer not in _known:
            _known[tokenizer] = Vocabulary(tokenizer)
        return _known[tokenizer]

    def once(self, key: object, make: Callable[[], Made]) -> Made:
        """What `make` gives, kept beside the vocabulary under `key`."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]  # type: ignore[return-value]

    @cached_property
    def _order(self) -> NDArray[np.int64]:
        return np.array(sorted(range(len(self.bytes)), key=self.bytes.__getitem__), dtype=np.int64)

    @cached_property
    def _sorted(self) -> list[bytes]:
        return [self.bytes[token] for token in self._order]

    @cached_property
    def _joined(self) -> bytes:
        return BORDER.join(self.bytes)

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        """Where each token begins in the joined bytes."""
        return np.cumsum([0, *(len(token) + 1 for token in self.bytes[:-1])])

    def beginning_with(self, prefix: bytes) -> NDArray[np.int64]:
        """The ids of the tokens that begin with these bytes, which are not empty and part of a UTF-8 text."""
        after = prefix[:-1] + bytes([prefix[-1] + 1])
        return self._order[bisect_left(self._sorted, prefix) : bisect_left(self._sorted, after)]

    def containing(self, part: bytes) -> NDArray[np.int64]:
        """The ids of the tokens that contain these bytes, which are not empty and part of a UTF-8 text."""
        # A place that overlaps one that was found is passed over: it is in the same token.
        places = [found.start() for found in re.finditer(re.escape(part), self._joined)]
        return np.unique(np.searchsorted(self._starts, places, side="right") - 1)

    @cached_property
    def _ids(self) -> dict[bytes, int]:
        return {piece: token for token, piece in enumerate(self.bytes) if piece and token not in self.special}

    def spell(self, text: bytes) -> list[int]:
        """`text` in tokens, the longest that fits each time; bytes that no token has are passed over."""
        longest, ids, start = max(map(len, self._ids)), [], 0
        while start < len(text):
            ends = range(min(len(text), start + longest), start, -1)
            end = next((end for end in ends if text[start:end] in self._ids), start)
            if end > start:
                ids.append(self._ids[text[start:end]])
            start = max(end, start + 1)
        return ids


_known: WeakKeyDictionary[Tokenizer, Vocabulary] = WeakKeyDictionary()


def _bytes(tokenizer: Tokenizer, token: int) -> bytes:
    try:
        return tokenizer.token_bytes(token)
    except InputError:  # a hole in the vocabulary
        return b""
