"""Several updates on one set of answers: what is computed once before them, their parts, and what they say together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from pellucid.alignment.drawn_rows import DrawnRows, lay
from pellucid.alignment.playing import Game
from pellucid.alignment.rollout_recipe import RolloutsRecipe
from pellucid.alignment.rollouts import Rollout
from pellucid.data.order import permutation
from pellucid.models.decoder import Decoder
from pellucid.training.loop import Trainer
from pellucid.training.step import Gradient, Measured

Each = Callable[[Decoder, DrawnRows], Tensor]  # what a model says of each token of some rows that was drawn, (N,)


def mixed(trainer: Trainer) -> AbstractContextManager[object]:
    """Products in the type that the run has chosen."""
    setting = trainer.setting
    return torch.autocast(setting.device.type, setting.autocast, enabled=setting.autocast is not None)


@torch.no_grad()
def known_before(trainer: Trainer, model: Decoder, rows: DrawnRows, each: Each) -> Tensor:
    """What `each` gives at the weights before the updates, (B, T), 0 where nothing was drawn."""
    found = torch.zeros(rows.tokens.shape, device=rows.tokens.device)
    parts = rows.split(trainer.recipe.train.micro_batch or len(rows.tokens))
    with mixed(trainer):
        found[rows.learnt] = torch.cat([each(model, part).float() for part in parts])
    return found


@torch.no_grad()
def largest_ratio_error(log_probs: Tensor, drawn: Tensor) -> float:
    """|r - 1| at most, between what training and what the engine that drew says of tokens at the same weights."""
    return float((log_probs - drawn).expm1().abs().max())


def minibatches(
    rows: DrawnRows | None, parts: int, *key: int | str
) -> Iterator[tuple[DrawnRows | None, Sequence[int]]]:
    """Some of the rows at a time, `parts` times, in an order drawn from `key`; None where there are fewer rows."""
    if rows is None or parts == 1:
        yield from [(rows, ())] * parts
        return
    B = len(rows.tokens)
    order = permutation(B, "minibatches", *key)(np.arange(B))
    for part in np.array_split(order, parts):
        yield (rows.take(part.tolist()) if len(part) else None), part.tolist()


def summed(total: Tensor, each: Mapping[str, Tensor]) -> Measured:
    """The loss, and sums over drawn tokens, (N,) each, with their number."""
    sums = {name: values.detach().float().sum() for name, values in each.items()}
    count = len(next(iter(each.values())))
    return Measured(total, {"tokens": total.new_tensor(float(count)), **sums})


def averaged(gradients: Sequence[Gradient]) -> dict[str, float]:
    """The means over drawn tokens, and then over updates. The trainer's sums were divided by units, among them
    `tokens`, the number of tokens."""
    found: dict[str, float] = {}
    for name in gradients[0].measures:
        if name != "tokens":
            means = [one.measures[name] / max(one.measures["tokens"], 1e-9) for one in gradients]
            found[name] = float(np.mean(means))
    return found


def full_rows(trainer: Trainer, recipe: RolloutsRecipe, game: Game) -> DrawnRows:
    """Rows that are full of drawn tokens, as many as are taken at a time: the most that an update has to hold."""
    drawn, context, device = recipe.rollouts, recipe.data.context, trainer.setting.device
    answers = -(-recipe.train.batch * drawn.answers // trainer.ranks.world)
    longest = min(context, max(len(one.ids) for one in game.prompts.prompts) + drawn.max_tokens)
    together = recipe.train.micro_batch or -(-answers * longest // context)
    tokens = context - 1
    full = Rollout((0,), (0,) * tokens, (0.0,) * tokens, (1,) * tokens, "", True)
    rows = lay([full] * together, context, device).rows.heaviest()
    rows = replace(rows, units=torch.ones_like(rows.units), weights=torch.ones_like(rows.weights))
    if drawn.top_p < 1:
        bits = torch.full((*rows.tokens.shape, -(-game.drawable // 8)), 255, dtype=torch.uint8, device=device)
        rows = replace(rows, kept=bits)
    return rows
