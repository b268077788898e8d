"""What holds a model to what it knew while it learns something new: `keep` in the recipe.

    l2    L(w) + lambda/2 |w - w0|^2                          stay near the start
    ewc   L(w) + lambda/2 sum over i of F_i (w_i - w0_i)^2    where it matters to what was known (Kirkpatrick et al.
                                                              2017, eq. 3); F: `alignment/fisher.py`, its diagonal
    fip   every step turned away from what changes the answers to old text: `alignment/invariant.py`

w0 and F are functions of the base, the old text and the seed alone: a run that goes on computes them again, bit for
bit. With an adapter, w are its parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from pellucid.alignment.fisher import fisher_diagonal, trained
from pellucid.alignment.invariant import InvariantPath
from pellucid.alignment.recipe import KeepRecipe
from pellucid.data.examples import BatchOfRows, Rows
from pellucid.models.decoder import Decoder
from pellucid.training.loop import Trainer
from pellucid.training.method import Supervised
from pellucid.training.step import Measured, Objective

PENALTY = "penalty"  # its name among the measures


def hold(trainer: Trainer, keep: KeepRecipe, old: Rows | None) -> None:
    """Makes a trainer that has not begun keep what its model knows.

    old: rows of old text, for ewc and fip; with fewer than are to be measured they are read again.
    """
    if keep.penalty == "fip":
        assert old is not None
        measure = partial(_measure, trainer, old)
        trainer.optimizers = InvariantPath(
            trainer.optimizers, trainer.model, measure, keep.strength, keep.rows, resumed=trainer.checkpoint is not None
        )
        assert isinstance(trainer.method, Supervised)
        trainer.method = Turned(trainer.method.rows, trainer.method.objective, trainer.method.measures)
        return
    importance = None
    if keep.penalty == "ewc":
        assert old is not None
        importance = _measure(trainer, old, range(keep.rows))
    assert isinstance(trainer.method, Supervised)
    penalty = quadratic(trained(trainer.model), keep.strength, importance)
    trainer.method = replace(
        trainer.method,
        objective=penalised(trainer.method.objective, penalty),
        measures=(*trainer.method.measures, PENALTY),
    )


class Turned(Supervised):
    """Steps of an `InvariantPath`, which hold more than others."""

    __slots__ = ()

    def preflight(self, trainer: Trainer) -> None:
        super().preflight(trainer)
        assert isinstance(trainer.optimizers, InvariantPath)
        trainer.optimizers.hold()


def quadratic(
    parameters: Sequence[nn.Parameter], strength: float, importance: Sequence[Tensor] | None = None
) -> Callable[[], Tensor]:
    """A function that gives lambda/2 sum over i of F_i (w_i - w0_i)^2, a scalar, w0 the parameters as they are now.

    strength: lambda. importance: F, a tensor for each parameter; None: 1.
    """
    start = [parameter.detach().clone() for parameter in parameters]

    def penalty() -> Tensor:
        squares = [(w - w0).square() for w, w0 in zip(parameters, start, strict=True)]
        if importance is not None:
            squares = [F * square for F, square in zip(importance, squares, strict=True)]
        return strength / 2 * torch.stack([square.sum() for square in squares]).sum()

    return penalty


def penalised(objective: Objective, penalty: Callable[[], Tensor]) -> Objective:
    """The objective with a penalty beside its mean: its sum gets one for each unit that is learnt from, so that a batch
    has it once, however it is cut. What the penalty is worth is measured under `PENALTY`."""

    def held(model: Decoder, rows: BatchOfRows) -> Measured:
        found = objective(model, rows)
        total, sums = found if isinstance(found, Measured) else (found, {})
        added = rows.supervised * penalty()
        return Measured(total + added, {**sums, PENALTY: added})

    return held


def _measure(trainer: Trainer, old: Rows, numbers: range) -> list[Tensor]:
    """The diagonal of the Fisher information, computed as the run computes."""
    autocast, device = trainer.setting.autocast, trainer.setting.device
    # A row alone would have a shape of its own to compile.
    with (
        torch.enable_grad(),
        torch.compiler.set_stance("force_eager"),
        torch.autocast(device.type, autocast, enabled=autocast is not None),
    ):
        return fisher_diagonal(trainer.model, old, numbers, trainer.recipe.seed, trainer.ranks)
