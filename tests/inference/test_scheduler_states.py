"""Any order of add, step, fork and finish, with a tiny cache: nothing leaks, nothing is mixed up, everything ends."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pellucid.errors import InputError
from pellucid.inference.blocks import BlockPool
from pellucid.inference.scheduler import Scheduler
from pellucid.inference.sequence import Sequence
from pellucid.inference.step import Step
from tests.inference.fake_cache import FakeCache

token = st.integers(0, 1)  # few, so that prompts share their beginnings
seeds = st.integers(0, 2**32)


@dataclass
class Account:
    """What the test knows of a sequence, without asking the scheduler."""

    tokens: list[int]
    final: int  # how long it gets
    scored: int  # logits were had after each token before this position


class SchedulerStates(RuleBasedStateMachine):
    @initialize(
        count=st.integers(1, 12),
        size=st.integers(1, 4),
        budget=st.integers(1, 12),
        sequences=st.integers(1, 5),
        longest=st.integers(2, 24),
    )
    def start(self, count: int, size: int, budget: int, sequences: int, longest: int) -> None:
        self.pool = BlockPool(count, size)
        self.scheduler = Scheduler(
            self.pool, max_tokens_per_step=max(budget, sequences), max_sequences=sequences, max_length=longest
        )
        self.longest = min(longest, count * size)
        self.cache = FakeCache(self.pool)
        self.accounts: dict[Sequence, Account] = {}

    # ---------------------------------------------------------------- rules

    @rule(
        prompt=st.lists(token, min_size=1, max_size=14),
        answer=st.integers(1, 10),
        salt=st.sampled_from([None, None, "an adapter"]),
        score=st.sampled_from([None, None, 0]),
    )
    def add(self, prompt: list[int], answer: int, salt: str | None, score: int | None) -> None:
        sequence = Sequence(prompt, salt=salt, wanted_from=score)
        if len(prompt) + 1 > self.longest:
            with pytest.raises(InputError, match=f"{len(prompt)} tokens .* holds {self.longest}"):
                self.scheduler.add(sequence)
            return
        self.scheduler.add(sequence)
        final = min(len(prompt) + answer, self.longest)
        self.accounts[sequence] = Account(list(prompt), final, len(prompt) - 1 if score is None else score)

    @precondition(lambda self: 0 < len(self.accounts) < 8)
    @rule(seed=seeds, last=token)
    def fork(self, seed: int, last: int) -> None:
        parent = random.Random(seed).choice(list(self.accounts))
        own = self.accounts[parent]
        child = self.scheduler.fork(parent, last)
        assert child.prompt_length == parent.prompt_length
        self.accounts[child] = Account([*own.tokens[:-1], last], own.final, len(own.tokens) - 1)

    @precondition(lambda self: self.accounts)
    @rule(seed=seeds)
    def abort(self, seed: int) -> None:
        sequence = random.Random(seed).choice(list(self.accounts))
        self.finish(sequence)
        with pytest.raises(InputError, match="not under way"):
            self.scheduler.finish(sequence)

    @rule(seed=seeds, drafts=st.sampled_from([0, 0, 3]), abort=st.sampled_from([False, False, False, True]))
    def step(self, seed: int, drafts: int, abort: bool) -> None:
        draw = random.Random(seed)
        for sequence in self.accounts:
            sequence.drafted = [draw.randrange(2) for _ in range(draw.randint(0, drafts))]
        waited, ran = list(self.scheduler.waiting), list(self.scheduler.running)
        writing = [one for one in ran if one.pending == 1]
        step, sequences = self.scheduler.schedule()
        self.check_step(step, sequences, waited, ran, writing)
        self.cache.run(step, sequences, [self.accounts[one].tokens for one in sequences])
        accepted = self.answer(step, sequences, draw)
        if abort and self.accounts:
            self.finish(draw.choice(list(self.accounts)))
        self.scheduler.commit(accepted)
        for sequence, tokens in zip(sequences, accepted, strict=True):
            own = self.accounts.get(sequence)
            if own is None:
                continue
            own.tokens += tokens
            own.scored = max(own.scored, sequence.computed)
            if len(own.tokens) == own.final:
                self.finish(sequence)

    def answer(self, step: Step, sequences: list[Sequence], draw: random.Random) -> list[list[int]]:
        """As many drafted tokens as the dice want, and one more."""
        accepted = []
        for chunk, sequence in zip(step.chunks, sequences, strict=True):
            own = self.accounts[sequence]
            drafted = chunk.start + len(chunk.tokens) - len(own.tokens)
            if drafted < 0:
                accepted.append([])
                continue
            good = draw.randint(0, drafted)
            draft = chunk.tokens[len(chunk.tokens) - drafted :]
            accepted.append([*draft[:good], draw.randrange(2)][: own.final - len(own.tokens)])
        return accepted

    def finish(self, sequence: Sequence) -> None:
        self.scheduler.finish(sequence)
        assert not sequence.table
        del self.accounts[sequence]

    # ---------------------------------------------------------------- what must hold

    def check_step(
        self,
        step: Step,
        sequences: list[Sequence],
        waited: list[Sequence],
        ran: list[Sequence],
        writing: list[Sequence],
    ) -> None:
        scheduler = self.scheduler
        assert bool(step.chunks) == bool(self.accounts)  # something always gets on
        assert sum(len(chunk.tokens) for chunk in step.chunks) <= scheduler.max_tokens_per_step
        assert len(set(sequences)) == len(sequences)
        for one in writing:  # no answer stands still, unless the cache is full
            assert one in sequences or one in scheduler.waiting
        let_in = [one.order for one in waited if one.state == "running"]
        passed_over = [one.order for one in waited if one.state == "waiting"]
        assert max(let_in, default=(-1, 0)) < min(passed_over, default=(99999, 0))
        for victim in (one for one in ran if one.state == "waiting"):
            assert all(one in sequences for one in scheduler.running if one.order > victim.order)
        for chunk, sequence in zip(step.chunks, sequences, strict=True):
            own = self.accounts[sequence]
            assert sequence.state == "running" and chunk.start == sequence.computed
            end = chunk.start + len(chunk.tokens)
            assert len(chunk.table) == self.pool.blocks_for(end) and end <= self.longest
            assert chunk.start <= own.scored  # nothing that was to be scored came from the prefix cache
            assert chunk.wanted == max(0, end - own.scored)

    @invariant()
    def blocks_are_accounted_for(self) -> None:
        pool, scheduler = self.pool, self.scheduler
        tables = [one.table for one in scheduler.running]
        holders = Counter(block for table in tables for block in table)
        assert [holders[block] for block in range(pool.count)] == pool.references
        free, cached = set(pool._free), set(pool._cached)
        assert len(free) == pool.free and len(cached) == pool.cached
        assert free.isdisjoint(cached) and free.isdisjoint(holders) and cached.isdisjoint(holders)
        assert pool.free + pool.cached + pool.used == pool.count and pool.used == len(holders)
        assert {block: key for key, block in pool._entries.items()} == pool._keys
        assert cached <= set(pool._keys) and free.isdisjoint(pool._keys)
        self.cache.check_entries()

    @invariant()
    def sequences_are_what_was_put_in(self) -> None:
        scheduler, pool = self.scheduler, self.pool
        assert {*scheduler.waiting, *scheduler.running} == set(self.accounts)
        assert len(scheduler.waiting) + len(scheduler.running) == len(self.accounts)
        assert len(scheduler.running) <= scheduler.max_sequences
        for queue in (scheduler.waiting, scheduler.running):
            assert [one.order for one in queue] == sorted(one.order for one in queue)
        for sequence, own in self.accounts.items():
            assert sequence.token_ids == own.tokens
            assert len(sequence.table) == pool.blocks_for(sequence.computed)
            assert sequence.state == "running" or not sequence.table
            self.cache.check(sequence.table, sequence.salt, own.tokens[: sequence.computed])
            full = sequence.table[: sequence.computed // pool.block_size]
            assert full == pool.match(own.tokens, sequence.salt, len(full) * pool.block_size)

    @invariant()
    def numbers_are_true(self) -> None:
        pool, stats = self.pool, self.scheduler.stats()
        held = {
            (one.table[position // pool.block_size], position % pool.block_size)
            for one in self.scheduler.running
            for position in range(one.computed)
        }
        assert stats.tokens_held == len(held)
        assert stats.slots_taken == pool.block_size * len({block for block, _ in held})
        assert 0 <= stats.prefix_hits <= stats.prefix_queries

    def teardown(self) -> None:
        """All that is under way ends, in a number of steps that its tokens allow; and the cache is empty then."""
        if not hasattr(self, "scheduler"):
            return
        for _ in range((len(self.accounts) + 1) * sum(own.final for own in self.accounts.values())):
            if not self.accounts:
                break
            self.step(0, 0, False)
        assert not self.accounts and not self.scheduler.busy
        assert self.pool.references == [0] * self.pool.count and self.pool.used == 0


TestSchedulerStates = SchedulerStates.TestCase
TestSchedulerStates.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
