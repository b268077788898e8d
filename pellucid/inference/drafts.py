"""Guesses at the next tokens, which one forward then judges together (Leviathan et al. 2023; Chen et al. 2023).

A guess is taken when the token that is drawn in its place is the same one. Every token is drawn from the model's own
distribution, with its row's own random numbers, as it would be without guesses: so the answer is the same, token for
token, whether it is greedy or sampled. A guess g that knows nothing of these numbers is taken with probability p(g).
One that is drawn from a distribution q with the same numbers is taken oftener, the more q is like p.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Several
from typing import Protocol

from pellucid.inference.rows import Row
from pellucid.inference.sequence import Sequence

KEEP = 0.8  # of a running mean, at each new value
TRY_AGAIN = 64  # steps, of which the slower way gets
TRIAL = 2
REMEMBERED = 4096  # tokens over which the reading of prompts is spread


class Drafter(Protocol):
    """Who guesses: `PromptLookups` or `DraftModel`."""

    def guess(self, wanted: Mapping[Sequence, Row], most: int) -> bool:
        """Set `drafted` of these sequences, `most` tokens at most, as their rows would draw them.

        Returns whether this took as long as it always does: not where it had to read first what others wrote."""

    def keep(self, running: Iterable[Sequence]) -> None:
        """Only these run now: what is held for others is free."""


class PromptLookup:
    """Guesses that a text goes on as it did the last time that its last tokens stood there (Saxena 2023).

    Costs a look-up a token, and is right where an answer repeats its prompt: summaries, corrections, code.
    """

    def __init__(self, size: int = 3) -> None:
        self._size = size
        self._after: dict[tuple[int, ...], int] = {}  # tokens that stood together -> where they were gone on from
        self._seen = size

    def guess(self, tokens: Several[int], most: int) -> list[int]:
        """At most so many tokens that may follow `tokens`, which have only grown since the last call."""
        size = self._size
        for end in range(self._seen, len(tokens)):
            self._after[tuple(tokens[end - size : end])] = end
        self._seen = max(self._seen, len(tokens))
        place = self._after.get(tuple(tokens[-size:]))
        return [] if place is None else list(tokens[place : place + most])


class PromptLookups:
    """A `PromptLookup` for each sequence."""

    def __init__(self) -> None:
        self._lookups: dict[Sequence, PromptLookup] = {}

    def guess(self, wanted: Mapping[Sequence, Row], most: int) -> bool:
        for sequence in wanted:
            sequence.drafted = self._lookups.setdefault(sequence, PromptLookup()).guess(sequence.token_ids, most)
        return True

    def keep(self, running: Iterable[Sequence]) -> None:
        kept = set(running)
        self._lookups = {sequence: lookup for sequence, lookup in self._lookups.items() if sequence in kept}


class Pace:
    """Whether guessing pays: it is left off while steps with guesses give fewer tokens a second than those without.

    What the guesser spends on prompts is spread over the tokens that steps with guesses have given.

    Now and then the slower way is tried again, since that depends on the text. How many answers are under way matters
    most, and so every power of two of them is judged for itself.
    """

    def __init__(self) -> None:
        self._rates: dict[tuple[int, bool], float] = {}  # tokens a second, by the size, with guesses and without
        self._steps = 0
        self._reading = 0.0  # seconds
        self._tokens = 0

    def choose(self, answers: int) -> bool:
        """Whether the next step, which writes so many answers, is to have guesses."""
        self._steps += 1
        with_guesses, without = self._both(answers)
        if with_guesses is None or without is None:
            return with_guesses is None
        better = with_guesses >= without
        return better if self._steps % TRY_AGAIN >= TRIAL else not better

    def note(self, guessed: bool, answers: int, tokens: int, seconds: float) -> None:
        """A step with guesses, or one without, gave so many tokens."""
        if guessed:
            self._tokens += tokens
            if self._tokens > REMEMBERED:  # what was long ago counts for less
                self._tokens, self._reading = self._tokens // 2, self._reading / 2
        key, rate = (answers.bit_length(), guessed), tokens / seconds
        self._rates[key] = KEEP * self._rates.get(key, rate) + (1 - KEEP) * rate

    def read(self, seconds: float) -> None:
        """The guesser has read prompts, for so long."""
        self._reading += seconds

    def _both(self, answers: int) -> tuple[float | None, float | None]:
        """Tokens a second with guesses and without, as last measured with so many answers; None: not yet."""
        with_guesses, without = (self._rates.get((answers.bit_length(), way)) for way in (True, False))
        if with_guesses is not None and self._tokens:
            with_guesses = 1 / (1 / with_guesses + self._reading / self._tokens)
        return with_guesses, without

    def gain(self, answers: int) -> float | None:
        """How many times as fast steps with guesses are, as last measured with so many answers; None: not yet."""
        with_guesses, without = self._both(answers)
        return None if with_guesses is None or without is None else with_guesses / without
