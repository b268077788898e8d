"""Rollouts as rows to learn from: prompts and answers packed side by side, and what is known of each drawn token.

B rows, T places a row, S answers, L tokens of the longest answer. What belongs to a drawn token stands at the place
before it, where it is predicted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from pellucid.alignment.drawn import Head
from pellucid.alignment.rollouts import Rollout
from pellucid.data.examples import IGNORE
from pellucid.data.packing import pack
from pellucid.layers.batch import PADDING, Batch
from pellucid.models.decoder import Decoder


@dataclass(frozen=True, slots=True)
class DrawnRows:
    """Rows of rollouts; a batch that the trainer takes a gradient at. All (B, T).

    tokens, positions, documents: as `data.examples.Examples` has them. targets: the token that was drawn next, else
    IGNORE. units: what the mean of the loss is over, 1 where one begins. weights: of each token in it. advantages.
    old, reference: ln p of the target at the weights that drew it (by the engine, until training's own forward has
    scored it), and under the reference policy. kept: the nucleus that it was
    drawn from, as bits, (B, T, bytes); None: all tokens. values, returns: of the value model, at the old weights.
    """

    tokens: Tensor
    targets: Tensor
    positions: Tensor
    documents: Tensor
    units: Tensor
    weights: Tensor
    advantages: Tensor
    old: Tensor
    reference: Tensor
    values: Tensor
    returns: Tensor
    kept: Tensor | None = None

    @property
    def learnt(self) -> Tensor:
        """Where a token was drawn, (B, T), bool."""
        return self.targets != IGNORE

    @property
    def supervised(self) -> int:
        return int(self.units.sum())

    @property
    def real(self) -> int:
        return int((self.documents != PADDING).sum())

    @property
    def batch(self) -> Batch:
        return Batch(self.positions, self.documents)

    def to(self, device: torch.device) -> DrawnRows:
        return self._each(lambda values: values.to(device))

    def take(self, rows: Sequence[int]) -> DrawnRows:
        """Some of the rows."""
        index = torch.tensor(list(rows), device=self.tokens.device)
        return self._each(lambda values: values[index])

    def split(self, rows: int) -> list[DrawnRows]:
        return [self.take(range(i, min(i + rows, len(self.tokens)))) for i in range(0, len(self.tokens), rows)]

    def heaviest(self) -> DrawnRows:
        """Every place is a token that was drawn."""
        every = torch.where(self.learnt, self.targets, 0)
        return replace(self, targets=every, documents=torch.zeros_like(self.documents))

    def _each(self, change: Callable[[Tensor], Tensor]) -> DrawnRows:
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: change(values) for name, values in given.items() if values is not None})


@dataclass(frozen=True, slots=True)
class Laid:
    """Rollouts, and where they lie. place: (S, L), of each drawn token in the flat rows, 0 outside of `mask`."""

    rollouts: Sequence[Rollout]
    rows: DrawnRows
    place: Tensor
    mask: Tensor

    def by_answer(self, values: Tensor) -> Tensor:
        """(B, T) -> (S, L), 0 outside of the mask."""
        return values.flatten()[self.place] * self.mask

    def by_place(self, values: Tensor) -> Tensor:
        """(S, L), or one value an answer (S, 1) -> (B, T), 0 where nothing was drawn."""
        flat = torch.zeros(self.rows.tokens.numel(), dtype=values.dtype, device=values.device)
        flat[self.place[self.mask]] = values.expand(self.mask.shape)[self.mask]
        return flat.view(self.rows.tokens.shape)


def lay(rollouts: Sequence[Rollout], context: int, device: torch.device) -> Laid:
    """Packs rollouts into rows of at most `context` places, each rollout whole."""
    lengths = np.array([len(one.prompt) + len(one.tokens) for one in rollouts])
    order, borders = pack(lengths, context, seed=0)
    B = len(borders) - 1
    T = max(int(lengths[order[begin:end]].sum()) for begin, end in pairwise(borders))
    tokens, positions = np.zeros((B, T), np.int64), np.zeros((B, T), np.int64)
    targets, documents = np.full((B, T), IGNORE), np.full((B, T), PADDING)
    place = np.zeros((len(rollouts), max(len(one.tokens) for one in rollouts)), np.int64)
    mask = np.zeros(place.shape, bool)
    for row in range(B):
        begin = 0
        for document, number in enumerate(order[borders[row] : borders[row + 1]].tolist()):
            one = rollouts[number]
            end, first = begin + int(lengths[number]), begin + len(one.prompt) - 1  # `first` predicts the first token
            tokens[row, begin:end] = (*one.prompt, *one.tokens)
            positions[row, begin:end] = np.arange(end - begin)
            documents[row, begin:end] = document
            targets[row, first : end - 1] = one.tokens
            place[number, : len(one.tokens)] = row * T + np.arange(first, end - 1)
            mask[number, : len(one.tokens)] = True
            begin = end
    parts = [torch.from_numpy(part).to(device) for part in (tokens, targets, positions, documents)]
    empty = torch.zeros(B, T, device=device)
    laid = Laid(
        rollouts, DrawnRows(*parts, *[empty] * 7), torch.from_numpy(place).to(device), torch.from_numpy(mask).to(device)
    )
    drawn = pad([one.logprobs for one in rollouts], laid)
    return replace(laid, rows=replace(laid.rows, old=laid.by_place(drawn)))


def pad(numbers: Sequence[Sequence[float]], laid: Laid) -> Tensor:
    """A number for each drawn token, (S, L), 0 at the end of shorter answers."""
    padded = torch.zeros(laid.mask.shape)
    padded[laid.mask.cpu()] = torch.tensor([float(number) for answer in numbers for number in answer])
    return padded.to(laid.mask.device)


def head_of(model: Decoder, drawable: int, temperature: float) -> Head:
    """What the model draws from at a temperature, of the first `drawable` tokens of its vocabulary."""
    return Head(model.head_weight[:drawable], temperature, model.config.logit_softcap)


def log_probs_of(model: Decoder, rows: DrawnRows, drawable: int, temperature: float) -> tuple[Tensor, Tensor]:
    """ln p of each drawn token, and the entropy there, both (N,), in the order of `rows.learnt`."""
    learnt = rows.learnt
    hidden = model.hidden(rows.tokens, rows.batch)[learnt]  # (N, E)
    kept = None if rows.kept is None else rows.kept[learnt]
    return head_of(model, drawable, temperature).log_probs(hidden, rows.targets[learnt], kept)


@torch.no_grad()
def find_nuclei(model: Decoder, laid: Laid, drawable: int, temperature: float, together: int) -> Laid:
    """The rows with the nucleus of each drawn token, by the model's weights, which are those that it was drawn with.

    together: rows at a time. Nothing changes where all tokens could be drawn.
    """
    if all(of == drawable for one in laid.rollouts for of in one.among):
        return laid
    rows, learnt = laid.rows, laid.rows.learnt
    among = laid.by_place(pad([one.among for one in laid.rollouts], laid)).long()
    kept = torch.zeros(*rows.tokens.shape, -(-drawable // 8), dtype=torch.uint8, device=rows.tokens.device)
    for start in range(0, len(rows.tokens), together):
        part = slice(start, start + together)
        batch = Batch(rows.positions[part], rows.documents[part])
        hidden = model.hidden(rows.tokens[part], batch)[learnt[part]]
        head = head_of(model, drawable, temperature)
        found = head.nuclei(hidden, rows.targets[part][learnt[part]], among[part][learnt[part]])
        kept[part][learnt[part]] = found
    return replace(laid, rows=replace(rows, kept=kept))
