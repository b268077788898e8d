"""Texts that an answer never has, in whatever tokens they might be written."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pellucid.inference.automaton import ROOT, Automaton
from pellucid.inference.vocabulary import Vocabulary
from pellucid.tokenizer.bpe import repair

if TYPE_CHECKING:
    from pellucid.tokenizer.tokenizer import Tokenizer


class BadWords:
    """The tokens that would complete a bad word, after each token of one answer.

    words: texts, none of them empty, as the answer must not have them: letter for letter, inside longer words too.
    free: ids that are never forbidden, because they write nothing: the stop tokens.
    """

    def __init__(self, words: Sequence[str], tokenizer: Tokenizer, free: Collection[int] = ()) -> None:
        self._words = [repair(word).encode() for word in words]
        self._vocabulary = Vocabulary.of(tokenizer)
        self._automaton: Automaton[int] = Automaton(self._words)
        self._free = np.array(sorted(free), dtype=np.int64)
        self._within = np.concatenate([self._vocabulary.containing(word) for word in self._words])
        self._forbidden: dict[int, NDArray[np.int64]] = {}
        self._node = ROOT

    def forbidden(self) -> NDArray[np.int64]:
        """Ids, in order: a bad word stands whole in the token, or began in the text and ends in the token."""
        if self._node not in self._forbidden:
            ends = [
                self._vocabulary.beginning_with(self._words[number][self._automaton.depth[node] :])
                for node in self._automaton.endings(self._node)
                for number in self._automaton.through[node]
                if node != ROOT and self._automaton.depth[node] < len(self._words[number])
            ]
            found = np.unique(np.concatenate([self._within, *ends]))
            self._forbidden[self._node] = np.setdiff1d(found, self._free, assume_unique=True)
        return self._forbidden[self._node]

    def advance(self, token: int) -> None:
        """The answer has one more token."""
        for byte in self._vocabulary.bytes[token]:
            self._node = self._automaton.step(self._node, byte)
