"""Who is served when, and what it costs: cases worked by hand. Any order of events: test_scheduler_states.py."""

from __future__ import annotations

import pytest

from pellucid.errors import InputError
from pellucid.inference.blocks import BlockPool
from pellucid.inference.scheduler import Scheduler
from pellucid.inference.sequence import Sequence
from pellucid.inference.step import Chunk


def scheduler(count: int = 16, size: int = 4, tokens: int = 64, sequences: int = 8, longest: int = 1000) -> Scheduler:
    pool = BlockPool(count, size)
    return Scheduler(pool, max_tokens_per_step=tokens, max_sequences=sequences, max_length=longest)


def added(one: Scheduler, length: int, first: int = 0, **more: int) -> Sequence:
    """A prompt of its own: `first` tells it from others."""
    sequence = Sequence(range(first, first + length), **more)
    one.add(sequence)
    return sequence


def step(one: Scheduler, token: int = 7) -> list[tuple[Sequence, Chunk]]:
    """A step in which every complete sequence gets `token`; its chunks."""
    made, sequences = one.schedule()
    chunks = list(zip(sequences, made.chunks, strict=True))
    one.commit([[token] * (chunk.start + len(chunk.tokens) == len(who.token_ids)) for who, chunk in chunks])
    return chunks


def lengths(chunks: list[tuple[Sequence, Chunk]]) -> dict[Sequence, int]:
    return {sequence: len(chunk.tokens) for sequence, chunk in chunks}


# -------------------------------------------------------------------- order and budget


def test_answers_come_first_then_prompts_in_pieces_in_order() -> None:
    s = scheduler(tokens=10)
    first, long, last = added(s, 3), added(s, 18, 100), added(s, 2, 200)
    assert lengths(step(s)) == {first: 3, long: 7}
    assert lengths(step(s)) == {first: 1, long: 9}
    chunks = step(s)
    assert lengths(chunks) == {first: 1, long: 2, last: 2}
    assert [chunk.wanted for _, chunk in chunks] == [1, 1, 1]
    assert [chunk.start for _, chunk in chunks] == [4, 16, 0]
    assert lengths(step(s)) == {first: 1, long: 1, last: 1}


def test_logits_are_wanted_once_the_prompt_is_in() -> None:
    s = scheduler(tokens=4, sequences=4)
    prompt = added(s, 9)
    assert [step(s)[0][1].wanted for _ in range(4)] == [0, 0, 1, 1]
    assert prompt.token_ids == [*range(9), 7, 7]


def test_a_scored_prompt_wants_logits_of_every_token() -> None:
    s = scheduler(tokens=4, sequences=4)
    added(s, 9, wanted_from=0)
    assert [step(s)[0][1].wanted for _ in range(4)] == [4, 4, 1, 1]


def test_no_more_than_max_sequences_run() -> None:
    s = scheduler(sequences=2)
    first, second, third = (added(s, 2, 10 * i) for i in range(3))
    assert lengths(step(s)) == {first: 2, second: 2}
    assert (s.stats().running, s.stats().waiting) == (2, 1)
    s.finish(first)
    assert lengths(step(s)) == {second: 1, third: 2}


def test_nobody_overtakes_one_that_needs_more_room() -> None:
    s = scheduler(count=4)
    first = added(s, 9)
    step(s)
    big, small = added(s, 9, 100), added(s, 1, 200)
    assert lengths(step(s)) == {first: 1}
    s.finish(first)
    assert lengths(step(s)) == {big: 9}  # small would leave big no block to grow into
    s.finish(big)
    assert lengths(step(s)) == {small: 1}


def test_nothing_to_do_is_an_empty_step() -> None:
    s = scheduler()
    made, sequences = s.schedule()
    assert (made.chunks, made.copies, sequences, s.busy) == ((), (), [], False)
    s.commit([])


# -------------------------------------------------------------------- prefix cache


def test_a_prompt_that_is_wholly_cached_still_computes_its_end() -> None:
    s = scheduler()
    first = added(s, 8)
    step(s)
    s.finish(first)
    again = added(s, 8)
    ((_, chunk),) = step(s)
    assert (chunk.start, chunk.tokens, chunk.wanted) == (4, [4, 5, 6, 7], 1)
    assert again.token_ids[8:] == [7]
    assert (s.stats().prefix_queries, s.stats().prefix_hits) == (16, 4)


def test_answers_are_cached_too_and_a_chat_goes_on_from_them() -> None:
    s = scheduler()
    first = added(s, 6)
    for _ in range(4):
        step(s)
    s.finish(first)
    s.add(Sequence([*first.token_ids, 50, 51]))
    ((_, chunk),) = step(s)
    assert chunk.start == 8 and chunk.tokens == [7, 7, 50, 51]


def test_a_scored_prompt_is_computed_from_where_it_is_scored() -> None:
    s = scheduler()
    s.finish(run_once(s, 12))
    whole, end = added(s, 12, wanted_from=0), added(s, 12, wanted_from=9)
    assert lengths(step(s)) == {whole: 12, end: 4}
    assert whole.table[:3] == end.table[:3]  # computed again, kept once


def run_once(s: Scheduler, length: int) -> Sequence:
    sequence = added(s, length)
    step(s)
    return sequence


# -------------------------------------------------------------------- copy-on-write


def test_a_fork_shares_all_and_copies_the_block_that_it_writes_to() -> None:
    s = scheduler()
    parent = added(s, 6)
    step(s, token=7)
    child, other = s.fork(parent, 8), s.fork(parent, 9)
    assert child.table == other.table == parent.table and s.blocks.used == 2
    made, sequences = s.schedule()
    assert sequences == [parent, child, other]
    shared = other.table[1]  # whoever writes last keeps the block
    assert made.copies == ((shared, parent.table[1]), (shared, child.table[1]))
    assert len({parent.table[1], child.table[1], shared}) == 3 and s.blocks.used == 4
    s.commit([[1], [1], [1]])
    assert [one.token_ids[6:] for one in (parent, child, other)] == [[7, 1], [8, 1], [9, 1]]


def test_a_fork_at_the_end_of_a_block_copies_nothing() -> None:
    s = scheduler()
    parent = added(s, 8)
    step(s)
    child = s.fork(parent, 9)
    made, _ = s.schedule()
    assert not made.copies and parent.table[:2] == child.table[:2] and parent.table[2] != child.table[2]


def test_a_fork_without_a_place_waits_and_finds_the_prompt_in_the_cache() -> None:
    s = scheduler(sequences=1)
    parent, later = added(s, 9), added(s, 1, 100)
    step(s)
    child = s.fork(parent, 8)
    assert child.state == "waiting" and not child.table
    s.finish(parent)
    assert lengths(step(s)) == {child: 2}  # the last of the prompt, and the 8; `later` came after the parent
    assert later.state == "waiting"


def test_a_fork_is_between_two_steps() -> None:
    s = scheduler()
    parent = added(s, 3)
    s.schedule()
    with pytest.raises(ValueError, match="between two steps"):
        s.fork(parent, 8)


# -------------------------------------------------------------------- drafts


@pytest.mark.parametrize("good", range(4))
def test_only_what_is_right_of_a_draft_counts(good: int) -> None:
    s = scheduler()
    sequence = added(s, 3)
    step(s, token=9)
    sequence.drafted = [20, 21, 22]
    made, _ = s.schedule()
    assert made.chunks[0].tokens == [9, 20, 21, 22] and made.chunks[0].wanted == 4
    assert len(sequence.table) == 2
    s.commit([[*[20, 21, 22][:good], 30]])
    assert sequence.token_ids == [0, 1, 2, 9, *[20, 21, 22][:good], 30]
    assert sequence.computed == 4 + good and sequence.pending == 1 and sequence.drafted == []
    assert len(sequence.table) == (1 if good == 0 else 2)  # a block for refused guesses alone is given back


def test_a_draft_takes_no_budget_or_block_from_others() -> None:
    s = scheduler(count=4, tokens=4, sequences=4)
    first, second = added(s, 2), added(s, 2, 10)
    step(s)
    first.drafted = second.drafted = [5] * 9
    assert lengths(scheduled(s)) == {first: 3, second: 1}  # four tokens, one of them for each
    s.commit([[1], [1]])
    for _ in range(3):
        step(s)
    assert len(first.table) == len(second.table) == 2 and s.blocks.available == 0
    first.drafted = [5, 5]
    assert lengths(scheduled(s)) == {first: 2, second: 1}  # to the end of its own block
    s.commit([[1], [1]])
    first.drafted = [5, 5]
    assert lengths(scheduled(s)) == {first: 1, second: 1}
    assert s.stats().preemptions == 0


def test_a_draft_takes_no_block_that_a_younger_one_needs() -> None:
    s = scheduler(count=5)
    first, second = added(s, 2), added(s, 4, 10)
    for _ in range(5):
        step(s)
    assert (first.computed, second.computed, s.blocks.available) == (6, 8, 1)
    first.drafted = [5] * 6
    assert lengths(scheduled(s)) == {first: 2, second: 1}
    assert s.stats().preemptions == 0


def test_a_draft_takes_no_block_that_a_prompt_was_promised() -> None:
    s = scheduler(count=12, size=1, tokens=4, sequences=2)
    first = added(s, 2)
    step(s)
    second = added(s, 8, 10)
    assert lengths(step(s)) == {first: 1, second: 3}
    first.drafted = [5] * 3
    assert lengths(scheduled(s)) == {first: 1, second: 3}


def scheduled(s: Scheduler) -> list[tuple[Sequence, Chunk]]:
    made, sequences = s.schedule()
    return list(zip(sequences, made.chunks, strict=True))


def test_a_draft_ends_where_the_context_ends() -> None:
    s = scheduler(longest=6)
    sequence = added(s, 3)
    step(s)
    sequence.drafted = [1, 1, 1, 1]
    assert lengths(scheduled(s)) == {sequence: 2}  # 4 known, one drafted, one more: 6


# -------------------------------------------------------------------- pre-emption


def test_the_youngest_gives_way_and_is_computed_again() -> None:
    s = scheduler(count=5)
    first, second = added(s, 6), added(s, 7, 100)
    step(s)
    step(s)
    assert (len(first.table), len(second.table)) == (2, 2)
    chunks = step(s)  # the ninth token of second takes the fifth block
    assert lengths(chunks) == {first: 1, second: 1} and s.blocks.available == 0
    assert lengths(step(s)) == {first: 1}  # first needs a third one
    assert second.state == "waiting" and not second.table and second.computed == 0
    assert s.stats().preemptions == 1
    s.finish(first)
    chunks = step(s)
    assert lengths(chunks) == {second: 2} and chunks[0][1].start == 8  # of its ten tokens, what was given up
    assert second.token_ids == [*range(100, 107), 7, 7, 7, 7]
    assert s.stats().prefix_queries == 13  # counted once


def test_no_one_is_let_in_who_would_have_to_go_at_once() -> None:
    s = scheduler(count=6)
    first = added(s, 4)
    step(s)
    second = added(s, 16, 100)
    assert lengths(step(s)) == {first: 1}  # four blocks are left: enough for a prompt, and none for first
    assert second.state == "waiting"


def test_one_sequence_may_fill_the_whole_cache() -> None:
    s = scheduler(count=3)
    sequence = added(s, 5)
    while len(sequence.token_ids) < s.max_length:
        step(s)
    assert s.max_length == 12 and s.stats().preemptions == 0
    s.finish(sequence)
    assert s.blocks.used == 0


# -------------------------------------------------------------------- leaving, and what is refused


def test_who_leaves_frees_everything_at_once() -> None:
    s = scheduler(count=4)
    running, waiting = added(s, 9), added(s, 9, 100)
    made, sequences = s.schedule()
    s.finish(running)  # in the middle of a step
    assert s.blocks.used == 0
    s.commit([[1] for _ in made.chunks])
    assert running.token_ids == [*range(9)] and sequences == [running]
    s.finish(waiting)
    assert not s.busy and s.blocks.used == 0


def test_a_step_that_failed_is_given_up_with_its_sequences() -> None:
    s = scheduler()
    parent = added(s, 5)
    step(s)
    s.fork(parent, 8)
    _, sequences = s.schedule()
    with pytest.raises(ValueError, match="commit the step before"):
        s.schedule()
    for one in sequences:
        s.finish(one)
    new = added(s, 5)
    assert lengths(step(s)) == {new: 1}  # the prompt's first block was computed in a step that went well


@pytest.mark.parametrize("never_added", [True, False])
def test_finishing_what_is_not_under_way_is_an_error(never_added: bool) -> None:
    s = scheduler()
    sequence = Sequence([1]) if never_added else added(s, 1)
    if not never_added:
        s.finish(sequence)
    with pytest.raises(InputError, match="not under way: it has ended, or was never added"):
        s.finish(sequence)


@pytest.mark.parametrize(
    ("length", "count", "longest", "message"),
    [
        (0, 16, 100, "the prompt is empty: give at least one token"),
        (100, 99, 100, "the prompt has 100 tokens and the context holds 100, the answer included: make it shorter"),
        (12, 3, 100, "the prompt has 12 tokens and the cache holds 12, the answer included: make it shorter"),
    ],
)
def test_what_can_never_fit_is_refused_at_the_door(length: int, count: int, longest: int, message: str) -> None:
    s = scheduler(count=count, longest=longest)
    with pytest.raises(InputError) as refused:
        added(s, length)
    assert str(refused.value) == message and not s.busy
    if length:
        added(s, length - 1)


@pytest.mark.parametrize(("tokens", "sequences"), [(4, 5), (4, 0)])
def test_a_budget_without_a_token_for_each_is_refused(tokens: int, sequences: int) -> None:
    with pytest.raises(InputError, match=f"max_sequences = {sequences} and max_tokens_per_step = {tokens}"):
        scheduler(tokens=tokens, sequences=sequences)


@pytest.mark.parametrize("tokens", [[1, 2], [1, 20, 3], [20, 21, 3, 4]])
def test_tokens_that_do_not_follow_are_refused(tokens: list[int]) -> None:
    s = scheduler()
    sequence = added(s, 3)
    step(s)
    sequence.drafted = [20, 21]
    s.schedule()
    with pytest.raises(ValueError, match="do not follow"):
        s.commit([tokens])


def test_a_piece_of_a_prompt_gets_no_token() -> None:
    s = scheduler(tokens=8)
    added(s, 9)
    s.schedule()
    with pytest.raises(ValueError, match="do not follow"):
        s.commit([[1]])


def test_a_sequence_must_end_where_the_context_ends() -> None:
    s = scheduler(longest=4)
    added(s, 3)
    step(s)
    with pytest.raises(ValueError, match="longer than 4 tokens"):
        step(s)


def test_a_sequence_without_a_next_token_must_end() -> None:
    s = scheduler()
    scored = added(s, 3, wanted_from=0)
    s.schedule()
    s.commit([[]])
    with pytest.raises(ValueError, match="finish it"):
        s.schedule()
    s.finish(scored)
    s.schedule()


def test_a_sequence_is_added_once() -> None:
    s = scheduler()
    sequence = added(s, 3)
    with pytest.raises(ValueError, match="added once"):
        s.add(sequence)
