"""Functionally invariant paths: steps that learn the new and hardly change what is said to the old.

Raghavan et al. 2024, "Engineering flexible machine learning systems by traversing functionally invariant paths",
Nature Machine Intelligence: a small step d of the weights moves the outputs on old data by d^T G d, where G is the
metric that pulls the distance of outputs back to the weights. The path goes on by steps of a given length that move the
outputs little and go down the new loss (figure 1c):

    d* = argmin over d of  d^T G d + beta d^T grad L,      |d| = eps

What is here is a small form of it.

- G is the Fisher information, the metric of the KL divergence between outputs, on old text, at the present weights.
  Only K scores g_k of old rows stand for it, G = 1/K sum_k g_k g_k^T, so all but K directions look free. With every
  step the oldest few are measured anew; the others are of the last steps.
- In place of the gradient stands the step d that the optimizer would make (Adam's, with momentum, weight decay and the
  learning rate), so that any optimizer may walk the path:

      d* ~ argmin over e of  |e - d|^2 + s / g e^T G e = (I + s / g G)^-1 d,     |d*| = |d|

  where g is the mean of the K eigenvalues of G, which makes the strength s a number without units. With d = -eta grad L
  it is the step of the paper, for one beta.
- Left out: the search among paths, the geodesic's own equation, and the constraint by more than one old task.

K directions, P parameters that are trained.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pellucid.alignment.fisher import trained
from pellucid.training.optimizers import Optimizers

FRESH = 4  # directions measured anew in a step
Measure = Callable[[range], Tensor]
"""Scores of the old rows with these numbers, (n, P): see `alignment.fisher.scores`."""


def along(step: Tensor, directions: Tensor, gram: Tensor, strength: float) -> Tensor:
    """The step d* of the same length that is to be made in place of `step`, (P,).

    directions: A, (K, P), the scores g_k; gram: A A^T, (K, K). It moves the outputs, d^T A^T A d, no more than `step`
    does, and the less the larger `strength` is.
    """
    # (I + s / g A^T A / K)^-1 d = d - A^T (c I + A A^T)^-1 A d,  c = K g / s,  g = trace(A A^T) / K^2 (Woodbury)
    wide = gram.double()
    damping = wide.trace() / len(wide) / strength
    seen = (directions @ step).double()
    solved = torch.linalg.solve(wide + damping * torch.eye(len(wide), device=wide.device, dtype=wide.dtype), seen)
    turned = step - solved.to(step.dtype) @ directions
    return turned * (step.norm() / turned.norm().clamp(min=torch.finfo(step.dtype).tiny))


class InvariantPath(Optimizers):
    """The optimizers of a model whose steps are turned by `along`. The directions are saved with their state."""

    def __init__(self, inner: Optimizers, model: nn.Module, measure: Measure, strength: float, directions: int) -> None:
        super().__init__(model, inner.parts)
        self.parameters, self.measure, self.strength = trained(model), measure, strength
        self.directions = measure(range(directions))
        self.gram = self.directions @ self.directions.T
        self.measured = torch.tensor(directions)  # rows of old text so far

    @torch.no_grad()
    def step(self, scale: float = 1.0) -> None:
        self.renew()
        before = [parameter.clone() for parameter in self.parameters]
        super().step(scale)
        step = torch.cat([(p - was).flatten() for p, was in zip(self.parameters, before, strict=True)])
        turned = along(step, self.directions, self.gram, self.strength)
        parts = turned.split([parameter.numel() for parameter in self.parameters])
        for parameter, was, part in zip(self.parameters, before, parts, strict=True):
            parameter.copy_(was + part.view_as(was))

    def renew(self) -> None:
        """Measures the oldest directions anew, at the weights as they are."""
        K = len(self.directions)
        first = int(self.measured)
        rows = range(first, first + min(FRESH, K))
        places = [number % K for number in rows]
        self.directions[places] = self.measure(rows)
        self.gram[places] = self.directions[places] @ self.directions.T
        self.gram[:, places] = self.gram[places].T
        self.measured += len(rows)

    def state_tensors(self) -> dict[str, Tensor]:
        own = {"directions": self.directions, "gram": self.gram, "measured": self.measured}
        return {**super().state_tensors(), **{f"keep.{name}": tensor for name, tensor in own.items()}}
