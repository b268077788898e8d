"""Which of many answers are given."""

from __future__ import annotations

from pellucid.inference.events import Event, best
from pellucid.inference.params import SamplingParams


def test_an_answer_that_failed_is_the_last_choice() -> None:
    failed = [Event(0, 0, 5, "", None, (), "error", "no token can be drawn")]
    whole = [Event(0, 1, 5, "a", -2.0, (), None, None), Event(0, 1, 6, "b", -4.0, (), "length", "max_tokens")]
    found = list(best([failed, whole], SamplingParams(n=2, best_of=3)))
    assert [(event.index, event.text) for event in found] == [(0, "a"), (0, "b"), (1, "")]
