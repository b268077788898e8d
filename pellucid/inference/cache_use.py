"""How well the cache is used: tokens against the slots that are taken for them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pellucid.inference.blocks import BlockPool
from pellucid.inference.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Stats:
    """How things stand now, and what was counted since the start.

    tokens_held: slots that hold a token of a running sequence, shared ones once; slots_taken: of all blocks in use.
    prefix_queries, prefix_hits: tokens of the sequences that were let in, and how many of them the prefix cache had;
    one that comes back after a pre-emption is not counted again.
    """

    running: int
    waiting: int
    blocks_used: int
    blocks_cached: int
    blocks_free: int
    tokens_held: int
    slots_taken: int
    prefix_queries: int
    prefix_hits: int
    preemptions: int


@dataclass(slots=True)
class CacheUse:
    """Slots of the cache summed over all steps: the ratio of two of them is an average weighted by time.

    held: slots that hold a token, those that sequences share once. taken: slots of the blocks in use.
    tokens: tokens in the cache, of each sequence by itself.
    contiguous_longest: slots of a cache that sets max_length aside for each sequence (Kwon et al. 2023, figure 2).
    """

    held: int = 0
    taken: int = 0
    tokens: int = 0
    contiguous_longest: int = 0

    def step(self, blocks: BlockPool, running: list[Sequence], max_length: int) -> None:
        """A step has been committed."""
        self.held += tokens_held(blocks, running)
        self.taken += blocks.used * blocks.block_size
        self.contiguous_longest += max_length * len(running)
        for sequence in running:
            self.tokens += sequence.computed
            sequence.steps += 1

    def stats(self) -> dict[str, float]:
        """The sums, from which the waste between two moments follows, and the waste until now."""
        return {
            "slot_steps_held": self.held,
            "slot_steps_taken": self.taken,
            "token_steps": self.tokens,
            "slot_steps_contiguous": self.contiguous_longest,
            "cache_waste": self.waste,
            "cache_waste_contiguous": self.waste_contiguous_longest,
        }

    @property
    def waste(self) -> float:
        """Which part of the slots taken holds no token: 0 to 1."""
        return 1 - self.held / self.taken if self.taken else 0.0

    @property
    def waste_contiguous_longest(self) -> float:
        """The same of a contiguous cache of max_length for each sequence."""
        return 1 - self.tokens / self.contiguous_longest if self.contiguous_longest else 0.0


def tokens_held(blocks: BlockPool, running: Iterable[Sequence]) -> int:
    """Slots that hold a token: every block in use is full, but for the end of each table."""
    unfilled = {one.table[-1]: len(one.table) * blocks.block_size - one.computed for one in running if one.table}
    return blocks.used * blocks.block_size - sum(unfilled.values())
