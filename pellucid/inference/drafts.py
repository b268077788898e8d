"""Guesses at the next tokens, which one forward then judges together (Leviathan et al. 2023; Chen et al. 2023).

A guess is taken when the token that is drawn in its place is the same one. Every token is drawn from the model's own
distribution, with its row's own random numbers, as it would be without guesses: so the answer is the same, token for
token, whether it is greedy or sampled. A guess g is taken with probability p(g), and no exact way of judging a guess
takes it more often.
"""

from __future__ import annotations

from collections.abc import Sequence

KEEP = 0.8  # of a running mean, at each new value
TRY_AGAIN = 32  # steps


class PromptLookup:
    """Guesses that a text goes on as it did the last time that its last tokens stood there (Saxena 2023).

    Costs a look-up a token, and is right where an answer repeats its prompt: summaries, corrections, code.
    """

    def __init__(self, size: int = 3) -> None:
        self._size = size
        self._after: dict[tuple[int, ...], int] = {}  # tokens that stood together -> where they were gone on from
        self._seen = size

    def guess(self, tokens: Sequence[int], most: int) -> list[int]:
        """At most so many tokens that may follow `tokens`, which have only grown since the last call."""
        size = self._size
        for end in range(self._seen, len(tokens)):
            self._after[tuple(tokens[end - size : end])] = end
        self._seen = max(self._seen, len(tokens))
        place = self._after.get(tuple(tokens[-size:]))
        return [] if place is None else list(tokens[place : place + most])


class Pace:
    """Whether guessing pays: it is left off while steps with guesses give fewer tokens a second than those without.

    Now and then the slower way is tried again, since that depends on the text and on what else is under way.
    """

    def __init__(self) -> None:
        self._rates: dict[bool, float] = {}  # tokens a second, with guesses and without
        self._steps = 0

    def choose(self) -> bool:
        """Whether the next step is to have guesses."""
        self._steps += 1
        for way in (True, False):
            if way not in self._rates:
                return way
        better = self._rates[True] >= self._rates[False]
        return better if self._steps % TRY_AGAIN else not better

    def note(self, guessed: bool, tokens: int, seconds: float) -> None:
        """A step with guesses, or one without, gave so many tokens."""
        rate = tokens / seconds
        before = self._rates.get(guessed, rate)
        self._rates[guessed] = KEEP * before + (1 - KEEP) * rate
