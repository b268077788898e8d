"""The next token of each row of a batch. Rows join and leave as they like, and each step may take any of them.

What a row draws depends on its own logits, parameters, history and random generator alone. B rows of a step, V entries
of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pellucid.errors import PellucidError
from pellucid.inference import filters
from pellucid.inference.params import SamplingParams
from pellucid.inference.rows import Row

FLOAT = torch.finfo(torch.float32)

# What a row draws from: the largest logits; all chances, or those that are typical; all of them, sorted; the largest
# chances, if need be together with the sum of all
Way = Literal["greedy", "all", "typical", "sorted", "largest", "nucleus"]


class NoToken(PellucidError):
    """Some rows have no token to draw; no row has moved on. `rows`: their places in the step."""

    def __init__(self, message: str, rows: Sequence[int]) -> None:
        super().__init__(message)
        self.rows = tuple(rows)


class Drawn(NamedTuple):
    """A token of each row. chances: that each had in the distribution that it was drawn from, after all that its row
    asked for. among: how many tokens that distribution has. All (B,)."""

    tokens: Tensor
    chances: Tensor
    among: Tensor

    def named(self, ids: Tensor) -> Drawn:
        """The same where the tokens are places in the rows of `ids` (B, M)."""
        return self._replace(tokens=ids.gather(-1, self.tokens[:, None])[:, 0])

    def with_(self, rows: Tensor, others: Drawn) -> Drawn:
        """These, and `others` in the places `rows`."""
        return Drawn(*(own.index_copy(0, rows, other) for own, other in zip(self, others, strict=True)))


@dataclass(frozen=True, slots=True)
class _Filters:
    """What the rows of a group ask for, each (rows,); see `filters.kept`."""

    heat: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    typical_p: Tensor | None

    def of(self, rows: Tensor) -> _Filters:
        typical_p = None if self.typical_p is None else self.typical_p[rows]
        return _Filters(self.heat[rows], self.top_k[rows], self.top_p[rows], self.min_p[rows], typical_p)


@dataclass(frozen=True, slots=True)
class _Group:
    """Rows that are drawn in one way. The way is a matter of the row alone, so that its rounding is too."""

    way: Way
    places: list[int]
    index: Tensor | None  # of the places; None: all rows of the step
    filters: _Filters


def _way(params: SamplingParams) -> Way:
    """What must be known of a distribution to draw from it."""
    if params.temperature < FLOAT.tiny:  # 0, or what float32 has no number for
        return "greedy"
    others = params.top_k or params.top_p < 1 or params.min_p
    if params.typical_p < 1:
        return "sorted" if others else "typical"
    if params.top_p < 1 and not params.top_k:
        return "nucleus"
    return "largest" if others else "all"


class _Plan:
    """What the rows of a step need, found out once for as long as the rows stay the same."""

    def __init__(self, rows: Sequence[Row], device: torch.device) -> None:
        self.rows = list(rows)
        self.biased = [(place, row.params.logit_bias) for place, row in enumerate(rows) if row.params.logit_bias]
        self.penalised = [(place, row.params, row.history) for place, row in enumerate(rows) if row.history is not None]
        self.early = [place for place, row in enumerate(rows) if row.drawn < row.params.min_tokens]
        self.worded = [(place, row.words) for place, row in enumerate(rows) if row.words is not None]
        self.matched = [(place, row.matcher) for place, row in enumerate(rows) if row.matcher is not None]
        self.tracked = [(place, one) for place, row in enumerate(rows) for one in row.tracked]
        self.shaped = bool(self.biased or self.penalised or self.early or self.worded or self.matched)
        if self.biased:
            places, ids, values = zip(
                *((place, *pair) for place, bias in self.biased for pair in bias.items()), strict=True
            )
            self.bias_index = (torch.tensor(places, device=device), torch.tensor(ids, device=device))
            self.bias = torch.tensor(values, dtype=torch.float32, device=device)
        ways = [_way(row.params) for row in rows]
        self.groups = [self._group(way, ways, device) for way in dict.fromkeys(ways) if way != "greedy"]

    def _group(self, way: Way, ways: Sequence[Way], device: torch.device) -> _Group:
        places = [place for place, one in enumerate(ways) if one == way]
        asked = [self.rows[place].params for place in places]

        def column(values: list[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float32, device=device)

        off = 2.0  # more than all chances together
        return _Group(
            way,
            places,
            None if len(places) == len(ways) else torch.tensor(places, device=device),
            _Filters(
                column([min(one.temperature, FLOAT.max) for one in asked]),
                torch.tensor([one.top_k or filters.ALL for one in asked], device=device),
                column([one.top_p if one.top_p < 1 else off for one in asked]),
                column([one.min_p for one in asked]),
                column([one.typical_p for one in asked]) if way in ("typical", "sorted") else None,
            ),
        )


class Sampler:
    """Draws tokens. It keeps nothing of a row: whoever holds the `Row` holds all of its state.

    vocab_size: V; device: where the logits are.
    """

    def __init__(self, vocab_size: int, device: torch.device | str = "cpu") -> None:
        self.vocab_size = vocab_size
        self._device = torch.device(device)
        self._plan = _Plan([], self._device)

    def __call__(self, logits: Tensor, rows: Sequence[Row]) -> Tensor:
        """The tokens (B,) that follow `logits` (B, V), one of each of `rows`, which must differ; they move on.

        Raises `NoToken` as `draw` does.
        """
        return self.draw(logits, rows).tokens

    @torch.no_grad()
    def draw(self, logits: Tensor, rows: Sequence[Row]) -> Drawn:
        """As a call, and what the tokens were drawn from.

        Raises `NoToken` when a row's logits have a NaN or nothing above -inf, or when what it asked for leaves nothing.
        """
        if self._plan.rows != list(rows):  # by identity
            self._plan = _Plan(rows, self._device)
        plan = self._plan
        scores = self._shaped(logits, plan) if plan.shaped else logits
        best, tokens = filters.largest(scores)
        if not (best > -torch.inf).all():
            raise _no_token(logits, best)
        all_drawn = Drawn(tokens, torch.ones_like(best, dtype=torch.float32), torch.ones_like(tokens))
        for group in plan.groups:
            own = scores if group.index is None else scores[group.index]
            drawn = self._draw(own.float(), group, [plan.rows[place] for place in group.places])
            all_drawn = drawn if group.index is None else all_drawn.with_(group.index, drawn)
        for row in rows:
            row.drawn += 1
        if plan.tracked:
            ids = all_drawn.tokens.tolist()
            for place, one in plan.tracked:
                one.advance(ids[place])
        return all_drawn

    def _shaped(self, logits: Tensor, plan: _Plan) -> Tensor:
        """The logits after biases, penalties and prohibitions."""
        scores = logits.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        if plan.biased:
            scores.index_put_(plan.bias_index, plan.bias, accumulate=True)
        if plan.penalised:
            self._penalise(scores, plan)
        for place in plan.early:
            row = plan.rows[place]
            if row.drawn < row.params.min_tokens:
                scores[place].index_fill_(0, row.stop_ids.to(self._device), -torch.inf)
        for place, words in plan.worded:
            ids = words.forbidden()
            scores[place].index_fill_(0, torch.from_numpy(ids[ids < self.vocab_size]).to(self._device), -torch.inf)
        if plan.matched:
            bits = torch.from_numpy(np.stack([matcher.allowed() for _, matcher in plan.matched])).to(self._device)
            index = torch.tensor([place for place, _ in plan.matched], device=self._device)
            scores[index] = filters.allow(scores[index], bits)
        return scores

    def _penalise(self, scores: Tensor, plan: _Plan) -> None:
        """In place, and at the tokens alone that the rows have seen: N of them in all."""
        lengths = [len(history.ids) for _, _, history in plan.penalised]
        starts = np.repeat([place * self.vocab_size for place, _, _ in plan.penalised], lengths)
        ids = np.concatenate([np.array(history.ids) for _, _, history in plan.penalised])
        counts = np.concatenate([np.array(history.counts) for _, _, history in plan.penalised])

        def column(name: str) -> Tensor:
            values = np.array([getattr(one, name) for _, one, _ in plan.penalised], dtype=np.float32)
            return torch.from_numpy(np.repeat(values, lengths)).to(self._device)

        seen = torch.from_numpy(starts + ids).to(self._device)  # (N,), places in the flat logits
        flat = scores.view(-1)
        values = filters.penalise_repetition(flat[seen], column("repetition_penalty"))
        flat[seen] = filters.penalise_presence(
            values,
            torch.from_numpy(counts).to(self._device),
            column("presence_penalty"),
            column("frequency_penalty"),
        )

    def _draw(self, scores: Tensor, group: _Group, rows: Sequence[Row]) -> Drawn:
        """A token of each row of a group."""
        # One number of each row's own generator: a row's draws are its own, whoever stands beside it.
        numbers = [torch.rand((), dtype=torch.float64, generator=row.generator).item() for row in rows]
        uniforms = torch.tensor(numbers, dtype=torch.float64, device=self._device)
        asked = group.filters
        if group.way in ("all", "typical"):
            chances = filters.chances(scores, asked.heat)
            passing = None if asked.typical_p is None else filters.in_typical(chances, asked.typical_p)
            return _take(chances, passing, uniforms)
        if group.way == "nucleus":
            return _in_nucleus(scores, asked, uniforms)
        return _among(scores, self.vocab_size if group.way == "sorted" else filters.GUESS, asked, uniforms)


def _take(chances: Tensor, passing: Tensor | None, uniforms: Tensor) -> Drawn:
    """A place in each row of `chances` (B, M), in any scale, among those that are `passing` (B, M); None: among all."""
    if passing is None:
        among = torch.full((len(chances),), chances.shape[-1], device=chances.device)
    else:
        chances, among = chances.where(passing, 0.0), passing.sum(-1)
    places = filters.draw(chances, uniforms)
    return Drawn(places, chances.gather(-1, places[:, None])[:, 0] / chances.sum(-1), among)


def _among(scores: Tensor, count: int, asked: _Filters, uniforms: Tensor) -> Drawn:
    """A token of each row, of those among its `count` likeliest that pass the filters.

    Where more may pass, the row is drawn again among more.
    """
    values, ids = filters.most(scores, count)  # (B, M)
    chances = filters.chances(values, asked.heat)
    passing, more = filters.kept(chances, asked.top_k, asked.top_p, asked.min_p, asked.typical_p)
    drawn = _take(chances, passing, uniforms).named(ids)
    if count >= scores.shape[-1] or not more.any():
        return drawn
    again = more.nonzero()[:, 0]
    return drawn.with_(again, _among(scores[again], filters.FARTHER * count, asked.of(again), uniforms[again]))


def _in_nucleus(scores: Tensor, asked: _Filters, uniforms: Tensor) -> Drawn:
    """The same for rows with a top-p and no top-k, whose chances are those among all tokens."""
    whole = filters.chances(scores, asked.heat)
    chances, ids = filters.most(whole, filters.GUESS)  # (B, M)
    passing, more = filters.kept(chances, asked.top_k, asked.top_p, asked.min_p, None)
    drawn = _take(chances, passing, uniforms).named(ids)
    if not more.any():
        return drawn
    again = more.nonzero()[:, 0]
    whole, asked = whole[again], asked.of(again)
    passing = (whole >= filters.nucleus_border(whole, asked.top_p)) & filters.in_min_p(whole, asked.min_p)
    return drawn.with_(again, _take(whole, passing, uniforms[again]))


def _no_token(logits: Tensor, best: Tensor) -> NoToken:
    rows = (~(best > -torch.inf)).nonzero()[:, 0].tolist()
    if bool((logits[rows].amax(-1) > -torch.inf).all()):
        return NoToken("what the request forbids leaves no token to draw: loosen its constraint or bad words", rows)
    return NoToken("the model's logits are not numbers: try float32, and if that fails, check the weights", rows)
