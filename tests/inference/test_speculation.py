"""Which steps say whether guessing pays."""

from __future__ import annotations

import time
from typing import Any, cast

from pellucid.inference.drafts import PromptLookups
from pellucid.inference.sequence import Sequence
from pellucid.inference.speculation import Speculation


class Slow:
    """A guesser that reads for a while when it first meets a sequence."""

    def __init__(self) -> None:
        self.known: set[Sequence] = set()

    def guess(self, wanted: Any, most: int) -> bool:
        new = set(wanted) - self.known
        self.known |= new
        time.sleep(0.02 * len(new))
        return not new

    def keep(self, running: Any) -> None:
        self.known &= set(running)


def test_the_reading_of_prompts_is_charged_to_guessing_and_what_others_wrote_is_not() -> None:
    speculation = Speculation(Slow(), 3)
    one, other = Sequence([1, 2]), Sequence([1, 2])

    def charged(*writing: Sequence) -> float:
        before = speculation._pace._reading
        speculation.guess(writing, cast(Any, dict.fromkeys(writing)))
        return speculation._pace._reading - before

    one.token_ids.append(3)
    other.token_ids.append(3)
    assert charged(one) >= 0.02
    assert charged(one) == 0
    assert charged(one, other) >= 0.02
    speculation._guessed = False  # guessing was left off while these were written
    other.token_ids += [4] * 9
    speculation.drafter.keep([])
    assert charged(other) == 0


def test_a_step_that_reads_prompts_says_nothing_of_guessing() -> None:
    speculation = Speculation(PromptLookups(), 3)
    writing = [Sequence([1, 2, 3]) for _ in range(4)]
    rows = cast(Any, dict.fromkeys(writing))
    for _ in range(8):
        speculation.guess(writing, rows)
        speculation.note(4, 4, 1.0 if speculation._guessed else 0.1)
    before = speculation.stats()["guess_gain"]
    assert 0 < before < 1
    speculation.guess([], {})  # a second wave of as many prompts
    speculation.note(4, 4, 50.0)
    assert speculation.stats()["guess_gain"] == before
