"""Guessing ahead in the engine: who guesses, whether it pays, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from pellucid.inference.drafts import Drafter, Pace
from pellucid.inference.rows import Row
from pellucid.inference.sequence import Sequence


class Speculation:
    """At most `most` tokens of an answer are guessed ahead by `drafter` and judged together, where that pays.

    drafts: guesses that were judged together, in one step for one answer. guessed, taken: tokens.
    """

    def __init__(self, drafter: Drafter, most: int) -> None:
        self.drafts = self.guessed = self.taken = 0
        self.drafter, self._most, self._pace = drafter, most, Pace()
        self._answers = self._now = 0
        self._guessed = self._as_always = False

    def guess(self, running: Iterable[Sequence], wanted: Mapping[Sequence, Row]) -> None:
        """Before a step: draft for those of the running sequences that are in `wanted`, if that pays."""
        self._now = len(wanted)
        self._answers = self._now or self._answers
        went_on = self._guessed or all(len(one.token_ids) == one.prompt_length + 1 for one in wanted)
        self._guessed = self._as_always = bool(wanted) and self._pace.choose(len(wanted))
        if self._guessed:
            self.drafter.keep(running)
            started = time.perf_counter()
            self._as_always = self.drafter.guess(wanted, self._most)
            if not self._as_always and went_on:  # what it read was prompts, not what others wrote meanwhile
                self._pace.read(time.perf_counter() - started)

    def judged(self, guessed: int, taken: int) -> None:
        """A draft of so many tokens was in the step."""
        self.drafts += 1
        self.guessed += guessed
        self.taken += taken

    def note(self, answers: int, tokens: int, seconds: float) -> None:
        """After a step that drew so many tokens for `answers` and read no prompt; seconds: with the guessing."""
        if answers == self._now and (self._as_always or not self._guessed):
            self._pace.note(self._guessed, answers, tokens, seconds)

    def keep(self, running: Iterable[Sequence]) -> None:
        """Only these run now: what is held for others is free."""
        self.drafter.keep(running)

    def stats(self) -> dict[str, float]:
        """What was counted since the start.

        accepted_length: tokens that a step gives an answer with a draft, on average. guess_gain: how many times as fast
        answers come with guesses, as measured last; 0 as long as that is not known.
        """
        return {
            "drafts": self.drafts,
            "tokens_guessed": self.guessed,
            "guesses_taken": self.taken,
            "accepted_length": 1 + self.taken / self.drafts if self.drafts else 0.0,
            "guess_gain": self._pace.gain(self._answers) or 0.0,
        }
