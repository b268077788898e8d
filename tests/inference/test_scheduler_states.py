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
        count=st.integers(2, 20),
        size=st.integers(1, 4),
        budget=st.integers(1, 12),
        sequences=st.sampled_from([1, 2, 3, 4, 6, 6]),
        longest=st.integers(6, 32),
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
        prompts=st.lists(st.lists(token, min_size=1, max_size=12), min_size=1, max_size=3),
        answer=st.integers(1, 24),
        salt=st.sampled_from([None, None, None, "an adapter"]),
        score=st.sampled_from([None, None, None, 0]),
    )
    def add(self, prompts: list[list[int]], answer: int, salt: str | None, score: int | None) -> None:
        for prompt in prompts:
            tokens = prompt[: max(1, self.longest - 2)]
            sequence = Sequence(tokens, adapter=salt, wanted_from=score)
            self.scheduler.add(sequence)
            final = min(len(tokens) + answer, self.longest)
            self.accounts[sequence] = Account(tokens, final, len(tokens) - 1 if score is None else score)

    @rule(more=st.integers(0, 3))
    def refuse(self, more: int) -> None:
        length = self.longest + more
        with pytest.raises(InputError, match=f"{length} tokens .* holds {self.longest}"):
            self.scheduler.add(Sequence([0] * length))

    @precondition(lambda self: self.scheduler.running and len(self.accounts) < 10)
    @rule(seed=seeds, children=st.lists(token, min_size=1, max_size=3))
    def fork(self, seed: int, children: list[int]) -> None:
        self.split(random.Random(seed).choice(self.scheduler.running), children)

    @precondition(lambda self: self.scheduler.waiting and len(self.accounts) < 10)
    @rule(last=token)
    def fork_before_its_turn(self, last: int) -> None:
        self.split(self.scheduler.waiting[-1], [last])

    def split(self, parent: Sequence, children: list[int]) -> None:
        own = self.accounts[parent]
        for last in children:
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

    @precondition(lambda self: self.scheduler.running)
    @rule(seed=seeds)
    def give_place(self, seed: int) -> None:
        sequence = random.Random(seed).choice(self.scheduler.running)
        self.scheduler.preempt(sequence)
        assert sequence in self.scheduler.waiting and not sequence.table

    @precondition(lambda self: self.accounts)
    @rule(seed=seeds, count=st.integers(1, 4), drafts=st.sampled_from([0, 0, 3]))
    def steps(self, seed: int, count: int, drafts: int) -> None:
        draw = random.Random(seed)
        for _ in range(count):
            self.step(draw, drafts, abort=draw.random() < 0.05)

    def step(self, draw: random.Random, drafts: int, abort: bool) -> None:
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
            own.tokens += tokens or []
            own.scored = max(own.scored, sequence.computed)
            if len(own.tokens) == own.final:
                self.finish(sequence)

    def answer(self, step: Step, sequences: list[Sequence], draw: random.Random) -> list[list[int] | None]:
        """As many drafted tokens as the dice want, and one more; now and then it cannot be said yet."""
        accepted: list[list[int] | None] = []
        for chunk, sequence in zip(step.chunks, sequences, strict=True):
            own = self.accounts[sequence]
            drafted = chunk.start + len(chunk.tokens) - len(own.tokens)
            if drafted < 0:
                accepted.append([])
                continue
            if draw.random() < 0.1:
                accepted.append(None)
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
            self.cache.check(sequence.table, sequence.adapter, own.tokens[: sequence.computed])
            full = sequence.table[: sequence.computed // pool.block_size]
            assert full == pool.match(own.tokens, sequence.adapter, len(full) * pool.block_size)

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
        draw = random.Random(0)
        for _ in range(2 * (len(self.accounts) + 1) * sum(own.final for own in self.accounts.values())):
            if not self.accounts:
                break
            self.step(draw, drafts=0, abort=False)
        assert not self.accounts and not self.scheduler.busy
        assert self.pool.references == [0] * self.pool.count and self.pool.used == 0


TestSchedulerStates = SchedulerStates.TestCase
TestSchedulerStates.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)


@pytest.mark.parametrize("seed", range(80))
def test_a_long_day(seed: int) -> None:
    """What the machine above does, with the dice loaded: many forks, full caches, few that leave early."""
    draw = random.Random(seed)
    day = SchedulerStates()
    size = draw.randint(1, 4)
    day.start(
        count=draw.randint(16, 64) // size,
        size=size,
        budget=draw.randint(4, 16),
        sequences=draw.randint(2, 6),
        longest=draw.randint(12, 32),
    )
    for _ in range(150):
        event = draw.random()
        running, waiting = day.scheduler.running, day.scheduler.waiting
        if event < 0.2 and len(waiting) < 5:
            prompts = [[draw.randrange(2) for _ in range(draw.randint(1, 12))] for _ in range(draw.randint(1, 3))]
            day.add(prompts, draw.randint(1, 24), draw.choice([None, None, "an adapter"]), draw.choice([None, None, 0]))
        elif event < 0.4 and running and len(waiting) < 5:
            day.split(draw.choice(running), [draw.randrange(2) for _ in range(draw.randint(1, 3))])
        elif event < 0.45 and day.accounts:
            day.abort(draw.randrange(100))
        elif event < 0.5 and running:
            day.give_place(draw.randrange(100))
        else:
            day.step(draw, drafts=draw.choice([0, 3]), abort=draw.random() < 0.05)
        day.blocks_are_accounted_for()
        day.sequences_are_what_was_put_in()
        day.numbers_are_true()
    day.teardown()
