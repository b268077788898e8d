"""The cache of keys and values as a pool of fixed-size blocks: who holds which, and what stands in them.

The pool knows numbers alone; the tensors are the runner's. A sequence holds a list of blocks, its table, and a block
may be held by many (Kwon et al. 2023, "Efficient Memory Management for Large Language Model Serving with
PagedAttention", 4.2 to 4.4).

The prefix cache is a tree. A full block has an entry under its key, (the block before it, salt, its token ids), so
that a walk from the root finds how much of a prompt has been computed before; a dictionary compares whole keys, and
never takes equal hashes for equal tokens. A block that nobody holds keeps its entry until it is needed for something
else. That a key may name the block before by its number rests on one fact: whoever holds a block holds all before it,
and lets go of the last one first, so that a block never loses its entry before those that follow it have lost theirs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

from pellucid.errors import InputError

ROOT = -1  # stands for the block before the first

Key = tuple[int, Hashable, tuple[int, ...]]


class BlockPool:
    """`count` blocks, numbered from 0, of `block_size` tokens each.

    references: (count,), how many tables a block is in.
    Every block is used (held by somebody), cached (held by nobody, with an entry) or free.
    """

    def __init__(self, count: int, block_size: int) -> None:
        if count < 1 or block_size < 1:
            raise InputError(f"a cache of {count} blocks of {block_size} tokens holds nothing: give both at least 1")
        self.count = count
        self.block_size = block_size
        self.references = [0] * count
        self._free = list(reversed(range(count)))  # a stack: the block let go of last is taken first
        self._cached: OrderedDict[int, None] = OrderedDict()  # the one that has been here longest comes first
        self._entries: dict[Key, int] = {}
        self._keys: dict[int, Key] = {}  # the entries the other way round

    @property
    def free(self) -> int:
        """Blocks with nothing in them."""
        return len(self._free)

    @property
    def cached(self) -> int:
        """Blocks that nobody holds and a prompt may find again."""
        return len(self._cached)

    @property
    def available(self) -> int:
        """Blocks that can be taken: the free ones and the cached ones."""
        return len(self._free) + len(self._cached)

    @property
    def used(self) -> int:
        """Blocks that somebody holds."""
        return self.count - self.available

    def blocks_for(self, tokens: int) -> int:
        """How many blocks that many tokens of one sequence fill."""
        return -(-tokens // self.block_size)

    def take(self) -> int:
        """A block to write to, with one holder: a free one, or else the cached one that was let go of longest ago."""
        if self._free:
            block = self._free.pop()
        elif self._cached:
            block, _ = self._cached.popitem(last=False)
            del self._entries[self._keys.pop(block)]
        else:
            raise ValueError("all blocks are held: see how many are available before taking one")
        self.references[block] = 1
        return block

    def hold(self, blocks: list[int]) -> None:
        """One more holder for each of them."""
        for block in blocks:
            if not self.references[block]:
                del self._cached[block]
            self.references[block] += 1

    def release(self, blocks: list[int]) -> None:
        """One holder less for each, the last block first."""
        for block in reversed(blocks):
            self.references[block] -= 1
            if self.references[block]:
                continue
            if block in self._keys:
                self._cached[block] = None
            else:
                self._free.append(block)

    def forget(self) -> None:
        """No prompt may find anything again: what stands in the blocks is of other weights. Nobody may hold any."""
        assert not self.used
        self._free += self._cached
        self._cached.clear()
        self._entries.clear()
        self._keys.clear()

    def match(self, tokens: list[int], salt: Hashable, limit: int) -> list[int]:
        """The blocks that hold the beginning of `tokens`, as far as it is known, `limit` tokens at most.

        Nobody holds them more than before: `hold` them before anything is taken.
        """
        found: list[int] = []
        parent = ROOT
        for end in range(self.block_size, limit + 1, self.block_size):
            block = self._entries.get((parent, salt, tuple(tokens[end - self.block_size : end])))
            if block is None:
                break
            found.append(block)
            parent = block
        return found

    def register(self, block: int, parent: int, tokens: list[int], salt: Hashable) -> int:
        """A held block has become full: returns the block to hold from now on for these tokens.

        That is `block` itself, under a new entry; or the one that holds the same already, and then the holder's
        reference moves to that one. parent: the block before it, which this function returned too, or `ROOT`.
        """
        key = (parent, salt, tuple(tokens))
        known = self._entries.get(key)
        if known is None:
            self._entries[key] = block
            self._keys[block] = key
            return block
        self.hold([known])
        self.release([block])
        return known
