"""Beam search: the most likely answers as a whole, of those that are found by keeping the best beginnings."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pellucid.errors import InputError


@dataclass(frozen=True, slots=True)
class Beam:
    """An answer: its tokens, the stop token too, and its score, by which the beams are in order."""

    token_ids: list[int]
    score: float


# score(y) = ln P(y) / |y|^a   (Wu et al. 2016, section 7, has ((5 + |y|) / 6)^a; this is the form that peers use)
def score(log_probability: float, length: int, length_penalty: float) -> float:
    """length_penalty a: 0 favours short answers, as ln P falls with each token; 1 is the mean of a token's ln P."""
    return log_probability / length**length_penalty


def beam_search(
    logprobs_of: Callable[[list[list[int]]], Tensor],
    prompt: Sequence[int],
    *,
    beams: int,
    max_tokens: int,
    stop_ids: Collection[int] = (),
    length_penalty: float = 1.0,
    early_stopping: bool | Literal["never"] = False,
) -> list[Beam]:
    """The best `beams` answers to a prompt, from the best score down; as transformers' `generate(num_beams=beams)`.

    logprobs_of: ln P of the next token after each of some token lists, (their number, V).
    early_stopping: True ends with the first `beams` answers that are whole; False when the best beginning, at the
    length that it has, no longer scores above the worst of them; "never" when it could not at any length.
    Raises `InputError` for fewer than one beam or token.
    """
    if beams < 1 or max_tokens < 1:
        raise InputError(f"beam search with {beams} beams and {max_tokens} tokens: give at least one of each")
    begun = [Beam([], 0.0)]  # their score is the plain ln P
    whole: list[Beam] = []
    for length in range(1, max_tokens + 1):
        best = _continuations(logprobs_of, prompt, begun, (1 + max(1, len(stop_ids))) * beams)
        ends = [length == max_tokens or one.token_ids[-1] in stop_ids for one in best]
        # What ends below the best `beams` is no answer: it was kept only so that enough go on.
        ended = [
            Beam(one.token_ids, score(one.score, length, length_penalty))
            for one, end in zip(best[:beams], ends, strict=False)
            if end
        ]
        whole = sorted(whole + ended, key=lambda one: -one.score)[:beams]
        begun = [one for one, end in zip(best, ends, strict=True) if not end][:beams]
        if not begun or (len(whole) == beams and early_stopping is True):
            break
        reach = max_tokens if early_stopping == "never" and length_penalty > 0 else length
        if len(whole) == beams and score(begun[0].score, reach, length_penalty) <= whole[-1].score:
            break
    return whole


def _continuations(
    logprobs_of: Callable[[list[list[int]]], Tensor], prompt: Sequence[int], begun: Sequence[Beam], most: int
) -> list[Beam]:
    """The most likely ways to go on by one token, from the best down."""
    chances = logprobs_of([[*prompt, *one.token_ids] for one in begun]).float()  # (beams, V)
    totals = chances + torch.tensor([[one.score] for one in begun], device=chances.device)
    best = totals.flatten().topk(min(most, totals.numel()))
    vocab_size = totals.shape[-1]
    return [
        Beam([*begun[place // vocab_size].token_ids, place % vocab_size], value)
        for value, place in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        if value > -torch.inf
    ]
