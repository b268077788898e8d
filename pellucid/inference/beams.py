"""Beam search: the most likely answers as a whole, of those that are found by keeping the best beginnings."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pellucid.errors import InputError

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
        self.beams, self.max_tokens, self.stop_ids = beams, max_tokens, stop_ids
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
        steps = self._continuations(chances, (1 + max(1, len(self.stop_ids))) * self.beams)
        best = [self._longer(chances, place, token, total) for place, token, total in steps]
        ends = [self._length == self.max_tokens or one.token_ids[-1] in self.stop_ids for one in best]
        # What ends below the best `beams` is no answer: it was kept only so that enough go on.
        ended = [
            Beam(one.token_ids, score(one.score, self._length, self.length_penalty), one.logprobs)
            for one, end in zip(best[: self.beams], ends, strict=False)
            if end
        ]
        self.whole = sorted(self.whole + ended, key=lambda one: -one.score)[: self.beams]
        going_on = [number for number, end in enumerate(ends) if not end][: self.beams]
        self.begun = [best[number] for number in going_on]
        if self._over():
            self.begun = []
        return [steps[number][:2] for number in going_on[: len(self.begun)]]

    def _continuations(self, chances: Tensor, most: int) -> list[tuple[int, int, float]]:
        """The most likely ways to go on by one token, from the best down: from where, by what, and ln P of it all."""
        totals = chances.float() + torch.tensor([[one.score] for one in self.begun], device=chances.device)
        best = totals.flatten().topk(min(most, totals.numel()))
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


def beam_search(
    logprobs_of: Callable[[list[list[int]]], Tensor],
    prompt: Sequence[int],
    *,
    beams: int,
    max_tokens: int,
    stop_ids: Collection[int] = (),
    length_penalty: float = 1.0,
    early_stopping: EarlyStopping = False,
) -> list[Beam]:
    """The best `beams` answers to a prompt, from the best score down; as transformers' `generate(num_beams=beams)`.

    logprobs_of: ln P of the next token after each of some token lists, (their number, V). See `Search`.
    Raises `InputError` for fewer than one beam or token.
    """
    if beams < 1 or max_tokens < 1:
        raise InputError(f"beam search with {beams} beams and {max_tokens} tokens: give at least one of each")
    search = Search(
        beams=beams, max_tokens=max_tokens, stop_ids=stop_ids, length_penalty=length_penalty,
        early_stopping=early_stopping,
    )  # fmt: skip
    while search.begun:
        search.advance(logprobs_of([[*prompt, *one.token_ids] for one in search.begun]))
    return search.whole
