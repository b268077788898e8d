"""What one step asks of the runner: plain data, made by the scheduler."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens of one sequence that go through the model in this step.

    tokens: in order, at least one; drafted ones come last.
    start: the position of the first of them, which is how many tokens of the sequence stand in the cache already.
    table: ids of the blocks that hold the sequence, the place of these tokens included; block i holds positions
        i * block_size onwards. It belongs to the sequence, and is as the step needs it until the step is committed.
    wanted: logits are wanted after each of the last `wanted` tokens: 0 while more of a prompt is to come, 1, or more
        to judge a draft or to score a prompt.
    adapter: whose changes to the weights these tokens are computed with; None: nobody's. Chunks of one adapter stand
        together in a step: they go through the model at once.
    """

    tokens: list[int]
    start: int
    table: list[int]
    wanted: int
    adapter: str | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One forward for many sequences.

    copies: (from, to), the blocks to copy before anything is written. No block is written to by two chunks.
    """

    chunks: tuple[Chunk, ...]
    copies: tuple[tuple[int, int], ...]
