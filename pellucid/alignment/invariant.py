"""Functionally invariant paths: steps that learn the new and hardly change what is said to the old.

Raghavan et al. 2024, "Engineering flexible machine learning systems by traversing functionally invariant paths",
Nature Machine Intelligence: a small step d of the weights moves the outputs on old data by d^T G d, where G is the
metric that pulls the distance of outputs back to the weights. The path goes on by steps of a given length that move the
outputs little and go down the new loss (figure 1c):

    d* = argmin over d of  d^T G d + beta d^T grad L,      |d| = eps

What is here is a small form of it.

- G is the Fisher information, the metric of the KL divergence between outputs, on old text, at the weights along the
  path: a running mean, to which every step adds some rows. Only its diagonal is kept. A sketch of low rank, which knows
  how weights act together, was tried and turned away from less: of a model of a million weights, 128 scores of rows
  saw a sixth of what a step changed, the diagonal half and more.
- In place of the gradient stands the step d that the optimizer would make (Adam's, with momentum, weight decay and the
  learning rate), so that any optimizer may walk the path:

      d* ~ argmin over e of  |e - d|^2 + s / g e^T G e = (I + s / g G)^-1 d,     |d*| = |d|

  where g is the mean of G's diagonal, which makes the strength s a number without units. With d = -eta grad L it is
  the step of the paper, for one beta.
- Left out: how weights act together, the search among paths, and the geodesic's own equation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pellucid.alignment.fisher import trained
from pellucid.training.optimizers import Optimizers

FRESH = 2  # rows of old text that a step measures, a gradient each
Measure = Callable[[range], list[Tensor]]
"""The diagonal of the Fisher information on the old rows with these numbers, a tensor for each of `trained`."""


def turn(step: Sequence[Tensor], metric: Sequence[Tensor], strength: float) -> None:
    """Makes of `step`, in place, the step d* of the same length; where the metric is 0 everywhere, it stays.

    metric: the diagonal of G, as tensors of the same shapes. d^T G d is no larger than before, and the smaller the
    larger `strength` is; so it is for a step of equal progress down the gradient, where `step` goes down it.
    """
    mean = torch.stack([part.sum() for part in metric]).sum() / sum(part.numel() for part in metric)
    if not mean:
        return
    length = torch.nn.utils.get_total_norm(step)
    # d*_i ~ d_i / (1 + s G_ii / g)
    for d, part in zip(step, metric, strict=True):
        d.div_(1 + strength / mean * part)
    longer = (length / torch.nn.utils.get_total_norm(step)).nan_to_num(1.0)
    for d in step:
        d.mul_(longer)


class InvariantPath(Optimizers):
    """The optimizers of a model whose steps are turned by `turn`.

    rows: the metric begins as the mean over so many of the old rows, and forgets them as fast. It is saved with the
    optimizers' state; resumed: it will be loaded from there.
    """

    def __init__(
        self,
        inner: Optimizers,
        model: nn.Module,
        measure: Measure,
        strength: float,
        rows: int,
        *,
        resumed: bool = False,
    ) -> None:
        super().__init__(model, inner.parts)
        self.parameters, self.measure, self.strength, self.rows = trained(model), measure, strength, rows
        self.metric = [torch.zeros_like(p) for p in self.parameters] if resumed else measure(range(rows))
        self.measured = torch.tensor(rows)  # rows of old text so far

    @torch.no_grad()
    def step(self, scale: float = 1.0) -> None:
        self.renew()
        before = [parameter.clone() for parameter in self.parameters]
        super().step(scale)
        # In the parameters' own memory, which is the step for so long.
        for parameter, was in zip(self.parameters, before, strict=True):
            parameter.sub_(was)
        turn(self.parameters, self.metric, self.strength)
        for parameter, was in zip(self.parameters, before, strict=True):
            parameter.add_(was)

    def hold(self) -> None:
        """Takes the memory of a step beside the gradients, and gives it back; it moves nothing."""
        self.measure(range(FRESH))
        before = [parameter.clone() for parameter in self.parameters]
        del before

    def renew(self) -> None:
        """Measures the next old rows, at the weights as they are."""
        first = int(self.measured)
        fresh = self.measure(range(first, first + FRESH))
        torch._foreach_lerp_(self.metric, fresh, FRESH / max(self.rows, FRESH))
        self.measured += FRESH

    def state_tensors(self) -> dict[str, Tensor]:
        metric = {f"{self._names[p]}.metric": part for p, part in zip(self.parameters, self.metric, strict=True)}
        return {**super().state_tensors(), **metric, "keep.measured": self.measured}
