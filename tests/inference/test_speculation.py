"""Which steps say whether guessing pays."""

from __future__ import annotations

from typing import Any, cast

from pellucid.inference.drafts import PromptLookups
from pellucid.inference.sequence import Sequence
from pellucid.inference.speculation import Speculation


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
