"""Many words looked for at once, in time linear in the text.

Aho and Corasick, "Efficient string matching: an aid to bibliographic search" (1975). A node of the automaton stands for
a beginning of some word, and after each symbol the current node is the longest beginning with which the text ends.
Words may be `str` (symbols: characters) or `bytes` (symbols: 0 to 255).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from typing import Generic, TypeVar

Symbol = TypeVar("Symbol", bound=Hashable)

ROOT = 0  # the empty beginning


class Automaton(Generic[Symbol]):
    """words: none of them empty.

    depth[node]: length of the beginning that it stands for. longest[node]: length of the longest word that ends there,
    0 when none does. through[node]: numbers of the words that begin with what it stands for.
    """

    def __init__(self, words: Sequence[Sequence[Symbol]]) -> None:
        self._next: list[dict[Symbol, int]] = [{}]
        self._shorter = [ROOT]  # the longest proper ending of a node that is a beginning too
        self.depth = [0]
        self.longest = [0]
        self.through: list[list[int]] = [list(range(len(words)))]
        for number, word in enumerate(words):
            self._plant(number, word)
        self._link()

    def _plant(self, number: int, word: Sequence[Symbol]) -> None:
        node = ROOT
        for symbol in word:
            following = self._next[node].setdefault(symbol, len(self._next))
            if following == len(self._next):
                self._next.append({})
                self._shorter.append(ROOT)
                self.depth.append(self.depth[node] + 1)
                self.longest.append(0)
                self.through.append([])
            node = following
            self.through[node].append(number)
        self.longest[node] = self.depth[node]

    def _link(self) -> None:
        """Breadth first, so that what is shorter is linked already."""
        queue = deque(self._next[ROOT].values())
        while queue:
            node = queue.popleft()
            for symbol, child in self._next[node].items():
                self._shorter[child] = self.step(self._shorter[node], symbol)
                self.longest[child] = self.longest[child] or self.longest[self._shorter[child]]
                queue.append(child)

    def step(self, node: int, symbol: Symbol) -> int:
        """The node after one more symbol."""
        while node != ROOT and symbol not in self._next[node]:
            node = self._shorter[node]
        return self._next[node].get(symbol, ROOT)

    def endings(self, node: int) -> Iterator[int]:
        """Every beginning with which the text ends, from the longest to the empty one."""
        while node != ROOT:
            yield node
            node = self._shorter[node]
        yield ROOT
