"""What is done to logits before a token is drawn, and the draw. B rows, V entries of the vocabulary.

Each is a pure function of the logits and of one number a row; a row's result does not depend on the other rows. Filters
take chances that are sorted, from the most likely down, and may be those of the first M tokens alone.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pellucid.operations.bits import unpack

BLOCK = 256  # tokens whose chances are added up at once, for a draw
WIDTH = 64  # tokens of which the largest is looked at first, for the largest of all
GUESS = 64  # what passes a filter is mostly among so many tokens, and they are found far sooner than all are sorted
FARTHER = 4  # and how many times as many are looked at where it is not
ALL = 2**31  # top_k that keeps all


# CTRL's penalised sampling (Keskar et al. 2019, section 4.1), in the form that every peer uses, which also
# pushes negative logits down:  x_i <- x_i / r if x_i > 0 else x_i * r,  for every token i seen
def penalise_repetition(logits: Tensor, penalty: Tensor) -> Tensor:
    """`logits` (N,) of tokens that have been seen, made less likely by `penalty` (N,)."""
    return torch.where(logits > 0, logits / penalty, logits * penalty)


# x_i <- x_i - presence * [n_i > 0] - frequency * n_i,  n_i: times that token i is in the answer so far
# (OpenAI's API reference)
def penalise_presence(logits: Tensor, counts: Tensor, presence: Tensor, frequency: Tensor) -> Tensor:
    """`logits` (N,) less `presence` (N,) once, and `frequency` (N,) for each of the `counts` (N,)."""
    return logits - presence * (counts > 0) - frequency * counts


def largest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The largest of each row of `logits` (B, V), and its token, the first of equals; a NaN counts as the largest."""
    if logits.device.type == "cpu":  # NumPy takes 4 us for a row of 49,152 where PyTorch takes 45
        tokens = torch.from_numpy(logits.detach().float().numpy().argmax(-1))
    else:
        tokens = logits.argmax(-1)
    return logits.gather(-1, tokens[:, None])[:, 0], tokens


def most(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of each row of `values` (B, V), sorted, and their places: two of (B, count).

    They lie in the `count` blocks with the largest maxima, so that most of a long row need not be put in order.
    """
    size = values.shape[-1]
    whole = size // WIDTH * WIDTH
    if 4 * count * WIDTH > size:
        found = values.topk(min(count, size))
        return found.values, found.indices
    blocks = values[:, :whole].unflatten(-1, (-1, WIDTH))  # (B, V / WIDTH, WIDTH)
    best = blocks.amax(-1).topk(count).indices  # (B, count)
    inside = blocks[torch.arange(len(values), device=values.device)[:, None], best].flatten(1)
    places = (best[..., None] * WIDTH + torch.arange(WIDTH, device=values.device)).flatten(1)
    if whole < size:
        inside = torch.cat([inside, values[:, whole:]], -1)
        places = torch.cat([places, torch.arange(whole, size, device=values.device).expand(len(values), -1)], -1)
    found = inside.topk(count)
    return found.values, places.gather(-1, found.indices)


# P_i = e^((x_i - max x) / t) / sum of all: the shift changes no probability, and keeps the smallest t from making
# infinity less infinity
def chances(logits: Tensor, temperature: Tensor) -> Tensor:
    """The distribution (B, V) of `logits` (B, V), float32, at `temperature` (B,), above 0."""
    scores = logits.clamp(max=torch.finfo(logits.dtype).max)
    # In place: each new tensor of this size costs more than what is computed in it.
    scores -= scores.amax(-1, keepdim=True)
    scores /= temperature[:, None]
    return torch.softmax(scores, -1, out=scores)


# Hierarchical neural story generation (Fan et al. 2018, section 5.1): keep the k largest
def in_top_k(chances: Tensor, k: Tensor) -> Tensor:
    """Which of sorted `chances` (B, M) are among the `k` (B,) largest, k from 1 up; equals of the smallest are."""
    return chances >= chances.gather(-1, k[:, None].clamp(max=chances.shape[-1]) - 1)


# The nucleus (Holtzman et al. 2020, section 3.1): the smallest set of most likely tokens whose P add up to at least p
def in_nucleus(chances: Tensor, p: Tensor) -> Tensor:
    """Which of sorted `chances` (B, M) are in the nucleus of mass `p` (B,); equals of the last one are."""
    return chances >= _last(chances, chances, p)


def nucleus_border(chances: Tensor, p: Tensor) -> Tensor:
    """The smallest chance (B, 1) in the nucleus of mass `p` (B,). `chances` (B, V) are whole, and in any order."""
    if chances.device.type != "cpu":
        ordered = chances.sort(-1, descending=True).values
        return _last(ordered, ordered, p)
    borders = [_nucleus_border(row, mass) for row, mass in zip(chances.numpy(), p.tolist(), strict=True)]
    return torch.tensor(borders, dtype=chances.dtype)[:, None]


def _nucleus_border(row: NDArray[np.float32], mass: float) -> float:
    """Sorts what is above some chance, and goes lower until the border is in it: a tenth of sorting all."""
    least = row.max() / 1024
    while True:
        likely = np.sort(row[row >= least])[::-1]
        before = likely.cumsum(dtype=np.float64) - likely
        size = int(np.searchsorted(before, mass))
        if size < len(likely) or len(likely) == len(row):
            return float(likely[max(1, size) - 1])
        least = least / 4 if least > 1e-12 else 0.0


# Min-p (Nguyen et al. 2024, section 3): keep P(i) >= m * max P
def in_min_p(chances: Tensor, minimum: Tensor) -> Tensor:
    """Which of `chances` (B, M) are at least `minimum` (B,) times the largest."""
    return chances >= chances.amax(-1, keepdim=True) * minimum[:, None]


# Locally typical sampling (Meister et al. 2023, section 3): the smallest set of tokens whose surprise -ln P is nearest
# to the expected one, the entropy H, and whose P add up to at least t:  sorted by |-ln P - H|, from the smallest up
def in_typical(chances: Tensor, mass: Tensor) -> Tensor:
    """Which of `chances` (B, V), a whole distribution in any order, are in the typical set of `mass` (B,)."""
    surprise = -chances.log()
    entropy = (chances * surprise).nansum(-1, keepdim=True)  # 0 * infinity is 0 here
    ranks = -(surprise - entropy).abs()
    count = GUESS
    while True:
        highest, order = most(ranks, count)
        border = _last(highest, chances.gather(-1, order), mass)
        if count >= ranks.shape[-1] or not (border == highest[:, -1:]).any():
            return ranks >= border
        count *= FARTHER  # some row's set may reach past the guess


# From the highest rank down, token i is in the smallest set of mass p when the tokens before it add up to less than p.
def _last(ranks: Tensor, chances: Tensor, mass: Tensor) -> Tensor:
    """The lowest rank (B, 1) in the smallest set of `mass` (B,); `ranks` (B, M), sorted, and the `chances` of each."""
    before = chances.cumsum(-1, dtype=torch.float64) - chances
    size = (before < mass[:, None]).sum(-1, keepdim=True).clamp(min=1)  # (B, 1)
    return ranks.gather(-1, size - 1)


# The filters one after another, in transformers' order, each on the distribution that the one before it has left
def kept(
    chances: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, typical_p: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Which tokens pass all filters: of `chances` (B, M), the M most likely tokens, from the most likely down.

    The others are each (B,): off are a top_k of `ALL`, a top_p above 1, a min_p of 0 and a typical_p of None, which
    needs M = V when it is on. Returns (B, M), and the rows (B,) in which tokens beyond the M may pass too.
    """
    first = in_top_k(chances, top_k)
    more = first[:, -1] & (top_k < ALL) & (chances[:, -1] > 0)
    chances = _left(chances, first)
    chances = _left(chances, in_nucleus(chances, top_p))
    chances = _left(chances, in_min_p(chances, min_p))
    if typical_p is not None:
        chances = _left(chances, in_typical(chances, typical_p))
    passing = chances > 0
    return passing, more | passing[:, -1]


def _left(chances: Tensor, stays: Tensor) -> Tensor:
    """The chances (B, M) of those that stay; they add up to 1 again where some of the M have gone."""
    left = chances.where(stays, 0.0)
    return torch.where(stays.all(-1, keepdim=True), chances, left / left.sum(-1, keepdim=True))


def allow(logits: Tensor, bits: Tensor) -> Tensor:
    """`logits` (B, V), -inf where the bit of `bits` (B, at least V / 8), uint8, lowest bit first, is not set."""
    return logits.masked_fill(~unpack(bits, logits.shape[-1]), -torch.inf)


# The inverse of the cumulative distribution at u: the first token i with  P(0) + ... + P(i) > u
def draw(chances: Tensor, uniforms: Tensor) -> Tensor:
    """One token of each row, `chances` (B, V) in any scale, chosen by `uniforms` (B,), float64 in [0, 1). (B,).

    First a block of tokens by the sums of the blocks, then a token of the block: sums are far quicker than a running
    sum over all tokens.
    """
    size = chances.shape[-1]
    if size <= BLOCK:
        return _invert(chances, uniforms)[0]
    whole = size // BLOCK * BLOCK
    sums = chances[:, :whole].unflatten(-1, (-1, BLOCK)).sum(-1)
    if whole < size:
        sums = torch.cat([sums, chances[:, whole:].sum(-1, keepdim=True)], -1)
    block, rest = _invert(sums, uniforms)
    places = block[:, None] * BLOCK + torch.arange(BLOCK, device=chances.device)  # (B, BLOCK)
    inside = chances.gather(-1, places.clamp(max=size - 1)).where(places < size, 0.0)
    token, _ = _invert(inside, rest)
    return block * BLOCK + token


def _invert(chances: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """The places (B,) that `uniforms` choose, and how far into their chance each has come, from 0 to 1."""
    cumulative = chances.cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    point = torch.minimum(uniforms[:, None] * total, total.nextafter(torch.zeros_like(total)))
    place = torch.searchsorted(cumulative, point, right=True)
    chance = chances.gather(-1, place).double()
    return place[:, 0], (1 - (cumulative.gather(-1, place) - point) / chance).clamp(0, 1)[:, 0]


def log_probabilities(logits: Tensor, tokens: Tensor, alternatives: int) -> tuple[Tensor, Tensor, Tensor]:
    """ln P of the raw distribution of `logits` (B, V): of `tokens` (B,), and of the most likely `alternatives`.

    Returns (B,), and (B, alternatives) of values and of token ids, from the most likely down.
    """
    scores = logits.float().log_softmax(-1)  # each row by itself, whatever the others are, as `logsumexp` does not
    _, ids = most(logits, alternatives)
    return scores.gather(-1, tokens[:, None])[:, 0], scores.gather(-1, ids), ids
