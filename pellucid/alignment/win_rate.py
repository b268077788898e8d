"""How often one model's answers are preferred to another's, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from pellucid.alignment.candidates import Candidates, Prompt
from pellucid.alignment.judges import Judge

Z = 1.959964  # of the standard normal distribution: 95 % lie within


@dataclass(frozen=True, slots=True)
class WinRate:
    """How A did against B. ties: equal answers, and pairs of which the judge was not sure, `swayed` of them because it
    preferred a place. unusable: pairs without a verdict, and unsaid: those on which the judge would not say anything;
    neither count."""

    wins: int
    losses: int
    ties: int
    swayed: int = 0
    unusable: int = 0
    unsaid: int = 0

    @property
    def count(self) -> int:
        return self.wins + self.losses + self.ties

    @property
    def rate(self) -> float:
        """Of A; a tie is half a win. NaN where nothing was judged."""
        return (self.wins + self.ties / 2) / self.count if self.count else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of `rate`. Where there are ties it is wider than it need be, since half a win
        varies less than a whole one."""
        return wilson(self.rate, self.count)

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"A wins {self.rate:.1%} (95 % confidence interval {low:.1%} to {high:.1%}): {self.wins:,} wins, "
            f"{self.losses:,} losses, {self.ties:,} ties"
        )


def wilson(p: float, n: int, z: float = Z) -> tuple[float, float]:
    """The interval of a proportion p that was seen among n (Wilson 1927); (0, 1) where n is 0."""
    if n == 0:
        return 0.0, 1.0
    # (p + z^2 / 2n  +-  z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max((middle - half) / scale, 0.0), min((middle + half) / scale, 1.0)


def win_rate(prompts: Sequence[Prompt], ours: Sequence[str], theirs: Sequence[str], judge: Judge) -> WinRate:
    """Has each pair of answers judged. ours, theirs: of A and B, one a prompt. Equal answers are ties unasked."""
    pairs = [Candidates(*one) for one in zip(prompts, zip(ours, theirs, strict=True), strict=True)]
    return count(pairs, judge)


def count(pairs: Iterable[Candidates], judge: Judge) -> WinRate:
    """pairs: prompts with the answers (of A, of B), as they come."""
    equal = 0

    def different() -> Iterator[Candidates]:
        nonlocal equal
        for one in pairs:
            if one.answers[0] == one.answers[1]:
                equal += 1
            else:
                yield one

    wins = losses = ties = swayed = unusable = unsaid = 0
    for judged in judge(different()):
        wins += judged.pairs == ((0, 1),)
        losses += judged.pairs == ((1, 0),)
        ties += not judged.pairs and not judged.unusable and not judged.unsaid
        swayed += judged.swayed
        unusable += judged.unusable > 0
        unsaid += judged.unsaid
    return WinRate(wins, losses, ties + equal, swayed, unusable, unsaid)
