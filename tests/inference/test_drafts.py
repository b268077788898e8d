"""Guesses from the text before, and when guessing is left off."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pellucid.inference.drafts import TRIAL, TRY_AGAIN, Pace, PromptLookup


def pace_of(pace: Pace, answers: int, steps: int, seconds: dict[bool, float]) -> list[bool]:
    """The ways that are chosen, when a step takes so long with guesses and without."""
    ways = []
    for _ in range(steps):
        ways.append(pace.choose(answers))
        pace.note(ways[-1], answers, 2, seconds[ways[-1]])
    return ways


def test_guessing_is_left_off_where_it_is_slower_and_tried_again() -> None:
    pace = Pace()
    assert pace.gain(1) is None
    ways = pace_of(pace, 1, 2 * TRY_AGAIN, {True: 0.5, False: 0.1})
    assert ways[:2] == [True, False] and ways[2:].count(True) == 2 * TRIAL - 1
    assert pace.gain(1) == 0.2
    ways = pace_of(pace, 1, 10 * TRY_AGAIN, {True: 0.01, False: 0.1})
    assert ways[-TRY_AGAIN:].count(True) == TRY_AGAIN - TRIAL


def test_what_the_guesser_reads_counts_too() -> None:
    """A step of 2 tokens is twice as fast with guesses, which save 0.1 s; the prompts took 10 s to read."""
    ways, pace = [], Pace()
    for reading in (10.0, 0.0):
        pace = Pace()
        pace.read(reading)
        ways.append(pace_of(pace, 1, 40, {True: 0.1, False: 0.2})[2:].count(True))
    assert ways[0] <= TRIAL and ways[1] > 30


def test_few_answers_and_many_are_judged_apart() -> None:
    pace = Pace()
    pace_of(pace, 1, 40, {True: 0.1, False: 0.5})
    pace_of(pace, 16, 40, {True: 0.5, False: 0.1})
    pace_of(pace, 40, 3, {True: 0.1, False: 0.5})
    assert [pace.choose(answers) for answers in (1, 16, 17, 40)] == [True, False, False, True]


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 6))
def test_a_guess_is_how_the_text_went_on_before(tokens: list[int], most: int) -> None:
    lookup = PromptLookup()
    for length in range(len(tokens)):
        text = tokens[:length]
        guess = lookup.guess(text, most)
        earlier = [end for end in range(3, length) if text[end - 3 : end] == text[-3:]]
        assert guess == (text[earlier[-1] : earlier[-1] + most] if earlier else [])
