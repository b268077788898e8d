"""A cache without a model: each slot holds all that decides the keys and values in it, so that a wrong one is seen."""

from __future__ import annotations

from pellucid.inference.blocks import ROOT, BlockPool
from pellucid.inference.sequence import Sequence
from pellucid.inference.step import Step

Slot = tuple[object, tuple[int, ...]] | None  # the salt, and every token up to this one


class FakeCache:
    """Carries out steps as a runner does, and reads back what each sequence would attend to."""

    def __init__(self, pool: BlockPool) -> None:
        self.pool = pool
        self.slots: list[list[Slot]] = [[None] * pool.block_size for _ in range(pool.count)]

    def run(self, step: Step, sequences: list[Sequence], known: list[list[int]]) -> None:
        """known: for each sequence the tokens that it has by the test's own account."""
        self._copy(step.copies)
        texts = []
        for chunk, sequence, tokens in zip(step.chunks, sequences, known, strict=True):
            assert chunk.tokens
            end = min(chunk.start + len(chunk.tokens), len(tokens))
            assert chunk.tokens[: end - chunk.start] == tokens[chunk.start : end]
            texts.append(tokens[:end] + chunk.tokens[end - chunk.start :])
            self.check(chunk.table, sequence.adapter, tokens[: chunk.start])
            for position in range(chunk.start, len(texts[-1])):
                block, offset = divmod(position, self.pool.block_size)
                self.slots[chunk.table[block]][offset] = (sequence.adapter, tuple(texts[-1][: position + 1]))
        for chunk, sequence, text in zip(step.chunks, sequences, texts, strict=True):
            self.check(chunk.table, sequence.adapter, text)  # nobody has written over another's slots

    def check(self, table: list[int], salt: object, tokens: list[int]) -> None:
        """The table leads to these tokens, each after those before it."""
        for position in range(len(tokens)):
            block, offset = divmod(position, self.pool.block_size)
            assert self.slots[table[block]][offset] == (salt, tuple(tokens[: position + 1]))

    def check_entries(self) -> None:
        """All that the prefix cache would give for some prompt is what it says."""
        for block, (parent, salt, tokens) in self.pool._keys.items():
            chain, text = [block], list(tokens)
            while parent != ROOT:
                chain.insert(0, parent)
                parent, other_salt, before = self.pool._keys[parent]
                assert other_salt == salt
                text = [*before, *text]
            self.check(chain, salt, text)

    def _copy(self, copies: tuple[tuple[int, int], ...]) -> None:
        """One after the other or all at once must be the same: a runner may do either."""
        before = [list(block) for block in self.slots]
        for source, to in copies:
            self.slots[to] = list(self.slots[source])
            assert self.slots[to] == before[source]
        assert len({to for _, to in copies}) == len(copies)
