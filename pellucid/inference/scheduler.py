"""Who computes what in the next step.

Every step is put together anew (iteration-level scheduling: Yu et al. 2022, "Orca", 3.1), under a budget of tokens:
first one token for each sequence that writes its answer, and its draft; what is left goes to prompts, in pieces, first
come first served, so that no answer waits for a long prompt (Agrawal et al. 2024, "Sarathi-Serve", 4.1).

When the cache is full, the youngest sequence gives its blocks back and is computed again later, the answer so far as if
it were part of its prompt (Kwon et al. 2023, "PagedAttention", 4.5); what the prefix cache still has of it by then
costs nothing. The oldest sequence that runs always gets on, so everything ends.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, insort
from collections.abc import Iterable

from pellucid.errors import InputError
from pellucid.inference.blocks import ROOT, BlockPool
from pellucid.inference.cache_use import CacheUse, Stats, tokens_held
from pellucid.inference.sequence import Sequence
from pellucid.inference.step import Chunk, Step


def _order(sequence: Sequence) -> tuple[int, int]:
    return sequence.order


class Scheduler:
    """Sequences that wait and sequences that run, both by age; only those that run hold blocks.

    max_tokens_per_step: tokens that go through the model at once; the more, the faster prompts are in and the longer
    answers stand still meanwhile. max_sequences: how many run at once, at most one for each of these tokens.
    max_length: tokens of a prompt and its answer, the smaller of the model's context and what the cache can hold;
    `finish` a sequence that has got there.

    Use: `schedule`, run the step, `commit`, then `fork` and `finish`, and again. All of it in one thread.
    """

    def __init__(self, blocks: BlockPool, *, max_tokens_per_step: int, max_sequences: int, max_length: int) -> None:
        if not 1 <= max_sequences <= max_tokens_per_step:
            raise InputError(
                f"max_sequences = {max_sequences} and max_tokens_per_step = {max_tokens_per_step}: each sequence needs "
                "a token a step, so give at least 1, and at least as many tokens as sequences"
            )
        self.blocks = blocks
        self.max_tokens_per_step = max_tokens_per_step
        self.max_sequences = max_sequences
        self.max_length = min(max_length, blocks.count * blocks.block_size)
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.use = CacheUse()
        self._context = max_length
        self._numbers = itertools.count()
        self._step: dict[Sequence, Chunk] = {}  # what has been scheduled and not committed
        self._copies: list[tuple[int, int]] = []
        self._prefix_queries = self._prefix_hits = self._preemptions = 0

    @property
    def _uncommitted(self) -> bool:
        return any(one.state == "running" for one in self._step)

    @property
    def busy(self) -> bool:
        """Whether any sequence is under way."""
        return bool(self.running or self.waiting)

    def stats(self) -> Stats:
        """The numbers of this moment."""
        return Stats(
            running=len(self.running),
            waiting=len(self.waiting),
            blocks_used=self.blocks.used,
            blocks_cached=self.blocks.cached,
            blocks_free=self.blocks.free,
            tokens_held=tokens_held(self.blocks, self.running),
            slots_taken=self.blocks.used * self.blocks.block_size,
            prefix_queries=self._prefix_queries,
            prefix_hits=self._prefix_hits,
            preemptions=self._preemptions,
        )

    # ---------------------------------------------------------------- sequences come and go

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence. Raises `InputError` for a prompt that is empty or leaves no room for an answer."""
        length = len(sequence.token_ids)
        if not length:
            raise InputError("the prompt is empty: give at least one token")
        if length >= self.max_length:
            whose = "context" if self.max_length == self._context else "cache"
            raise InputError(
                f"the prompt has {length} tokens and the {whose} holds {self.max_length}, the answer included: "
                "make it shorter"
            )
        if sequence.state != "new" or not 0 <= sequence.wanted_from < length:
            raise ValueError("a sequence is added once, and wants logits from a token of its prompt on")
        arrival = next(self._numbers)
        sequence.order = (arrival, arrival)
        sequence.state = "waiting"
        self.waiting.append(sequence)

    def fork(self, sequence: Sequence, last: int) -> Sequence:
        """A sequence that differs from this one in its last token, which must not be in the cache yet.

        Called between two steps, for several answers to a prompt or for beams. The two share every block, until one
        of them writes into the block that they both have half full. The new one is as old as this one, and waits if
        `max_sequences` run already.
        """
        self._check_under_way(sequence)
        if self._uncommitted or not sequence.pending:
            raise ValueError("a sequence is forked between two steps, while its last token is still to be computed")
        child = Sequence([*sequence.token_ids[:-1], last], adapter=sequence.adapter)
        child.prompt_length = sequence.prompt_length
        child.order = (sequence.order[0], next(self._numbers))
        if sequence.state == "running" and len(self.running) < self.max_sequences:
            child.computed = sequence.computed
            child.table = list(sequence.table)
            self.blocks.hold(child.table)
            self._let_in(child)
        else:
            self._let_wait(child)
        return child

    def finish(self, sequence: Sequence) -> None:
        """The answer is complete, or nobody wants it any more: its blocks are given back at once.

        At any time, whether the sequence waits or runs, and in the middle of a step too. Raises `InputError` for one
        that is not under way.
        """
        self._check_under_way(sequence)
        queue = self.running if sequence.state == "running" else self.waiting
        del queue[bisect_left(queue, sequence.order, key=_order)]
        self._give_back(sequence)
        sequence.state = "ended"

    def preempt(self, sequence: Sequence) -> None:
        """A running sequence gives its blocks back, and waits to be computed again."""
        self._preemptions += 1
        del self.running[bisect_left(self.running, sequence.order, key=_order)]
        self._give_back(sequence)
        sequence.computed = 0
        self._let_wait(sequence)

    # ---------------------------------------------------------------- one step

    def schedule(self) -> tuple[Step, list[Sequence]]:
        """The next step, and the sequence of each of its chunks; no chunks when no sequence is under way.

        Raises `ValueError` if the step before was neither committed nor all its sequences finished, or if a sequence
        was given no token in `commit` and not finished.
        """
        if self._uncommitted:
            raise ValueError("commit the step before, or finish its sequences, and only then schedule the next")
        if not all(one.pending for one in self.running):
            raise ValueError("a sequence got no token in the last step and has nothing left to compute: finish it")
        self._step, self._copies = {}, []
        writing = [one for one in self.running if one.pending <= 1]
        reading = [one for one in self.running if one.pending > 1]
        budget = self.max_tokens_per_step
        to_read = sum(map(self._still_needed, reading))
        for others, sequence in zip(reversed(range(len(writing))), writing, strict=True):
            if sequence.state == "running":  # it was, before one that is older took its blocks
                budget -= self._write(sequence, budget - others - 1, to_read + others)
        for sequence in reading:
            if budget and sequence.state == "running":
                budget -= self._read(sequence, budget)
        self._admit(budget)
        names = list(dict.fromkeys(one.adapter for one in self._step))
        if len(names) > 1:  # those of one adapter stand together
            self._step = dict(sorted(self._step.items(), key=lambda item: names.index(item[0].adapter)))
        return Step(tuple(self._step.values()), tuple(self._copies)), list(self._step)

    def commit(self, accepted: Iterable[list[int] | None]) -> None:
        """The step has run: for each of its chunks, the tokens that the sequence gets.

        No token while more of a prompt is to come; one after that; with a draft, the drafted tokens that stand, from
        the first, and one more. A sequence that was finished meanwhile gets nothing, whatever is given for it. One that
        gets none though its prompt is all in must be finished before the next step. None instead of a list: it
        is not known yet how the sequence goes on, and its last token is computed again in the next step.
        Raises `ValueError` for tokens that do not fit what the step computed, and for a sequence grown too long.
        """
        for (sequence, chunk), tokens in zip(self._step.items(), accepted, strict=True):
            if sequence.state != "running":
                continue
            known = min(len(chunk.tokens), sequence.pending)
            drafted = chunk.tokens[known:]
            if tokens is None:
                known, tokens = known - 1, []
            if tokens and (known < sequence.pending or tokens[:-1] != drafted[: len(tokens) - 1]):
                raise ValueError(
                    f"{tokens} do not follow from a step that computed {known} tokens and drafted {drafted}"
                )
            if len(sequence.token_ids) + len(tokens) > self.max_length:
                raise ValueError(f"a sequence has got longer than {self.max_length} tokens: finish it before that")
            sequence.computed += known + max(0, len(tokens) - 1)
            sequence.wanted_from = max(sequence.wanted_from, sequence.computed)
            sequence.token_ids += tokens
            sequence.drafted = []
            self._settle(sequence, chunk.start)
        self._step = {}
        self.use.step(self.blocks, self.running, self.max_length)

    def _write(self, sequence: Sequence, spare: int, reserved: int) -> int:
        """Schedule the last token of an answer, and its draft as far as that costs nobody else anything.

        spare: tokens that the draft may have; reserved: blocks that it must leave to others.
        Returns how many tokens were scheduled: none, if the cache is full and all others are older.
        """
        drafted = sequence.drafted
        if drafted:
            left = self.max_length - len(sequence.token_ids) - 1
            drafted = drafted[: max(0, min(spare, left, self._room(sequence, reserved) - 1))]
        if not self._make_room(sequence, 1):
            self.preempt(sequence)
            return 0
        return self._place(sequence, 1, drafted)

    def _read(self, sequence: Sequence, budget: int) -> int:
        """Schedule a piece of a prompt, as long as budget and cache allow. Returns how many tokens that are."""
        count = self._make_room(sequence, min(budget, sequence.pending))
        return self._place(sequence, count, []) if count else 0

    def _admit(self, budget: int) -> None:
        """Let waiting sequences in, in order, while there is room for all that they and those that run have to read.

        Beside that, every sequence is left a block to grow into: one that is let in only to be pre-empted in the next
        steps computes its prompt for nothing.
        """
        needed = sum(map(self._still_needed, self.running))
        while budget and self.waiting and len(self.running) < self.max_sequences:
            sequence = self.waiting[0]
            length = len(sequence.token_ids)
            found = self.blocks.match(sequence.token_ids, sequence.adapter, sequence.wanted_from)
            held = sum(self.blocks.references[block] > 0 for block in found)
            if needed + self.blocks.blocks_for(length) - held > self.blocks.available:
                return
            if not sequence.steps:
                self._prefix_queries += length
                self._prefix_hits += len(found) * self.blocks.block_size
            self.blocks.hold(found)
            sequence.table = found
            sequence.computed = len(found) * self.blocks.block_size
            del self.waiting[0]
            self._let_in(sequence)
            budget -= self._place(sequence, min(budget, sequence.pending), [])
            needed += self._still_needed(sequence)

    # ---------------------------------------------------------------- blocks

    def _still_needed(self, sequence: Sequence) -> int:
        """Blocks that a running sequence will want: what it has yet to read, and one to grow into."""
        return max(0, self.blocks.blocks_for(len(sequence.token_ids)) - len(sequence.table)) + 1

    def _must_copy(self, sequence: Sequence) -> bool:
        """Whether the block that it writes to next is half full and somebody else's too."""
        half_full = sequence.computed % self.blocks.block_size > 0
        return half_full and self.blocks.references[sequence.table[-1]] > 1

    def _room(self, sequence: Sequence, reserved: int = 0) -> int:
        """How many more tokens of it the cache can take, without pre-empting anybody or touching `reserved` blocks."""
        more = max(0, self.blocks.available - reserved)
        blocks = len(sequence.table) + more - self._must_copy(sequence)  # a copy takes the place of its own last one
        return max(0, blocks * self.blocks.block_size - sequence.computed)

    def _make_room(self, sequence: Sequence, count: int) -> int:
        """Pre-empt younger ones until `count` tokens fit. Returns how many of them do."""
        while (room := self._room(sequence)) < count:
            victim = self._youngest(sequence)
            if victim is None:
                break
            self.preempt(victim)
        return min(room, count)

    def _youngest(self, sequence: Sequence) -> Sequence | None:
        """The youngest of those that run, are younger than this one and have no part in the step yet."""
        for other in reversed(self.running):
            if other.order <= sequence.order:
                return None
            if other not in self._step:
                return other
        return None

    def _place(self, sequence: Sequence, count: int, drafted: list[int]) -> int:
        """Take the blocks for `count` known tokens and a draft, and put them into the step. Returns how many."""
        start = sequence.computed
        tokens = sequence.token_ids[start : start + count] + drafted
        end = start + len(tokens)
        if self._must_copy(sequence):
            shared = sequence.table[-1]
            sequence.table[-1] = self.blocks.take()
            self.blocks.release([shared])
            self._copies.append((shared, sequence.table[-1]))
        while len(sequence.table) < self.blocks.blocks_for(end):
            sequence.table.append(self.blocks.take())
        wanted = max(0, end - max(start, sequence.wanted_from))
        self._step[sequence] = Chunk(tokens, start, sequence.table, wanted, sequence.adapter)
        return len(tokens)

    def _settle(self, sequence: Sequence, start: int) -> None:
        """After a step from position `start`: give back what a refused draft had taken, register what became full."""
        size, table = self.blocks.block_size, sequence.table
        kept = self.blocks.blocks_for(sequence.computed)
        self.blocks.release(table[kept:])
        del table[kept:]
        for i in range(start // size, sequence.computed // size):
            parent = table[i - 1] if i else ROOT
            tokens = sequence.token_ids[i * size : (i + 1) * size]
            table[i] = self.blocks.register(table[i], parent, tokens, sequence.adapter)

    def _give_back(self, sequence: Sequence) -> None:
        self.blocks.release(sequence.table)
        sequence.table = []  # a new list: a step that runs may still look at the old one

    # ---------------------------------------------------------------- queues

    def _let_in(self, sequence: Sequence) -> None:
        sequence.state = "running"
        insort(self.running, sequence, key=_order)

    def _let_wait(self, sequence: Sequence) -> None:
        sequence.state = "waiting"
        insort(self.waiting, sequence, key=_order)

    def _check_under_way(self, sequence: Sequence) -> None:
        if sequence.state not in ("waiting", "running"):
            raise InputError("the sequence is not under way: it has ended, or was never added")
