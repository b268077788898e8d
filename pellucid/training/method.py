"""What a step of a run does to the weights: it takes the gradient of the next rows, or whatever a method does."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from pellucid.data.examples import Batches, BatchOfRows
from pellucid.training.loss import next_token_loss
from pellucid.training.step import Objective

if TYPE_CHECKING:
    from pellucid.training.loop import Trainer


@dataclass(frozen=True, slots=True)
class Moved:
    """What a step has done.

    loss: the mean over `learnt` units. real: tokens that were computed with, padding not counted. norm: of the
    gradient, not clipped. reading: seconds that the data took. seen: how many tokens a token has before it and attends
    to, on average; None where that says nothing of the work. measures: what else is logged, by name.
    """

    loss: float
    learnt: int
    real: int
    norm: float
    reading: float = 0.0
    seen: float | None = None
    measures: Mapping[str, float] = field(default_factory=dict)


class Method(Protocol):
    """How the weights are moved. What step n does is a function of the weights, of `state`, and of n."""

    def step(self, trainer: Trainer, number: int) -> Moved:
        """Step `number`, the first being 1: through `Trainer.descend`, once or several times."""

    def preflight(self, trainer: Trainer) -> None:
        """The heaviest thing that a step may have to hold, before the first one; it moves nothing (promise D4)."""

    def state(self) -> dict[str, Any]:
        """Plain values that it goes on from."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes `state` up again."""


@dataclass(frozen=True, slots=True)
class Supervised:
    """One batch a step, its rows the next in order, and one gradient. measures: sums that the objective gives too."""

    rows: Batches
    objective: Objective = next_token_loss
    measures: Sequence[str] = ()

    def step(self, trainer: Trainer, number: int) -> Moved:
        began = time.perf_counter()
        batch = self._batch(trainer, number)
        examples = self._read(trainer, batch)
        reading = time.perf_counter() - began
        gradient = trainer.descend(number, examples, self.objective, batch, measures=self.measures)
        seen = None
        if examples is not None:
            seen = float(examples.positions[examples.documents >= 0].float().mean())
        return Moved(gradient.loss, gradient.learnt, gradient.real, gradient.norm, reading, seen, gradient.measures)

    def preflight(self, trainer: Trainer) -> None:
        examples = self._read(trainer, self._batch(trainer, 1))
        heaviest = None if examples is None else examples.heaviest()
        trainer.gradient(heaviest, self.objective, measures=self.measures)

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        pass

    def _batch(self, trainer: Trainer, number: int) -> range:
        """Which rows a step reads, in all processes together."""
        batch: int = trainer.recipe.train.batch
        return range((number - 1) * batch, number * batch)

    def _read(self, trainer: Trainer, batch: range) -> BatchOfRows | None:
        """This process's share of them."""
        share = trainer.ranks.share(batch)
        return self.rows.read(share).to(trainer.setting.device) if share else None
