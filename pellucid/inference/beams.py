"""Beam search: the most likely answers as a whole, of those that are found by keeping the best beginnings."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

EarlyStopping = bool | Literal["never"]


@dataclass(frozen=True, slots=True)
class Beam:
    """An answer: its tokens, the stop token too, its score, by which beams are in order, and ln P of each token."""

    token_ids: list[int]
    score: float
    logprobs: list[float]


# score(y) = ln P(y) / |y|^a   (Wu et al. 2016, section 7, has ((5 + |y|) / 6)^a; this is the form that peers use)
def score(log_probability: float, length: int, length_penalty: float) -> float:
    """length_penalty a: 0 favours short answers, as ln P falls with each token; 1 is the mean of a token's ln P."""
    return log_probability / length**length_penalty


class Search:
    """A beam search under way, which is told ln P of what may come next, and says how its beginnings go on.

    beams: how many beginnings are kept, and how many answers are wanted.
    early_stopping: True ends with the first `beams` answers that are whole; False when the best beginning, at the
    length that it has, no longer scores above the worst of them; "never" when it could not at any length.
    begun: the beginnings, from the best down, their score being the plain ln P; none when the search is over.
    whole: the answers so far, from the best down.
    """

    def __init__(
        self,
        *,
        beams: int,
        max_tokens: int,
        stop_ids: Collection[int] = (),
        length_penalty: float = 1.0,
        early_stopping: EarlyStopping = False,
    ) -> None:
        self.beams, self.max_tokens, self.stop_ids = beams, max_tokens, frozenset(stop_ids)
        self.length_penalty, self.early_stopping = length_penalty, early_stopping
        self.begun = [Beam([], 0.0, [])]
        self.whole: list[Beam] = []
        self._length = 0

    def advance(self, chances: Tensor) -> list[tuple[int, int]]:
        """chances: ln P of the next token after each beginning, (their number, V), in their order.

        Returns, for each of the beginnings that there are now, the place of the one that it goes on from, and by which
        token.
        """
        self._length += 1
        totals = chances.float() + torch.tensor([[one.score] for one in self.begun], device=chances.device)
        last = self._length == self.max_tokens
        ended = [
            Beam(one.token_ids, score(one.score, self._length, self.length_penalty), one.logprobs)
            for one in (
                self._longer(chances, *step) for step in self._likeliest(totals) if last or step[1] in self.stop_ids
            )
        ]
        self.whole = sorted(self.whole + ended, key=lambda one: -one.score)[: self.beams]
        if not last:
            totals[:, [token for token in self.stop_ids if 0 <= token < totals.shape[-1]]] = -torch.inf
        going_on = [] if last else self._likeliest(totals)
        self.begun = [self._longer(chances, *step) for step in going_on]
        if self._over():
            self.begun = []
        return [step[:2] for step in going_on[: len(self.begun)]]

    def _likeliest(self, totals: Tensor) -> list[tuple[int, int, float]]:
        """The best `beams` ways to go on by one token, from the best down: from where, by what, and ln P of it all."""
        best = totals.flatten().topk(min(self.beams, totals.numel()))
        return [
            (*divmod(place, totals.shape[-1]), value)
            for value, place in zip(best.values.tolist(), best.indices.tolist(), strict=True)
            if value > -torch.inf
        ]

    def _longer(self, chances: Tensor, place: int, token: int, total: float) -> Beam:
        before = self.begun[place]
        return Beam([*before.token_ids, token], total, [*before.logprobs, float(chances[place, token])])

    def _over(self) -> bool:
        if not self.begun or len(self.whole) < self.beams:
            return not self.begun
        if self.early_stopping is True:
            return True
        reach = self.max_tokens if self.early_stopping == "never" and self.length_penalty > 0 else self._length
        return score(self.begun[0].score, reach, self.length_penalty) <= self.whole[-1].score
