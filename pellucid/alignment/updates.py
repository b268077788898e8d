"""Several updates on one set of answers: what is computed once before them, their parts, and what they say together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pellucid.alignment.drawn_rows import DrawnRows, Laid, find_nuclei, lay
from pellucid.alignment.playing import Game
from pellucid.alignment.rollout_recipe import RolloutsRecipe
from pellucid.alignment.rollouts import Rollout
from pellucid.data.order import permutation
from pellucid.models.decoder import Decoder
from pellucid.training.loop import Trainer
from pellucid.training.ranks import Ranks
from pellucid.training.step import Gradient, Measured

Each = Callable[[Decoder, DrawnRows], Tensor]  # what a model says of each token of some rows that was drawn, (N,)


LOOK = "look at the answers in samples.jsonl of the run folder"  # where the rows are no rows of a file


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


def lay_drawn(trainer: Trainer, game: Game, rollouts: Sequence[Rollout]) -> Laid:
    """Rollouts in rows, with the nuclei that they were drawn from."""
    recipe = game.recipe
    laid = lay(rollouts, recipe.data.context, trainer.setting.device)
    together = recipe.train.micro_batch or len(laid.rows.tokens)
    with mixed(trainer):
        return find_nuclei(trainer.model, laid, game.drawable, recipe.rollouts.temperature, together)


@dataclass
class Minibatches:
    """A step's rows in `asked` parts, or fewer, where no process has so many rows: that is said once."""

    asked: int
    ranks: Ranks
    say: Callable[[str], None]
    told: bool = False

    def __call__(self, rows: DrawnRows | None, *key: int | str) -> list[DrawnRows | None]:
        """The parts, in an order drawn from `key`; None for one in which only other processes have rows."""
        if self.asked == 1:
            return [rows]
        B = 0 if rows is None else len(rows.tokens)
        parts = min(self.asked, max(1, int(self.ranks.largest(B))))
        if parts < self.asked and not self.told:
            self.told = True
            self.say(
                f"{parts} updates and not {self.asked} at a time: the answers of a step fill no more packed rows; for "
                "more of them lower data.context, or raise train.batch or rollouts.answers"
            )
        order = permutation(B, "minibatches", *key)(np.arange(B)) if B else np.arange(0)
        return [
            rows.take(part.tolist()) if rows is not None and len(part) else None
            for part in np.array_split(order, parts)
        ]


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
            means = [one.measures[name] / one.measures["tokens"] for one in gradients if one.measures["tokens"]]
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
