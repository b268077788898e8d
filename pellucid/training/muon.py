"""Muon (Jordan et al. 2024): momentum, whose direction is made orthogonal before the weights follow it.

A and C: rows and columns of a weight matrix, N matrices of one shape.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # a, b, c: the steepest at 0 that stay near 1 (Jordan et al. 2024)
ITERATIONS = 5
EPS = 1e-7  # no division by the norm of a matrix of zeros
# So many entries at most are multiplied at a time. Small matrices are up to three times as fast together, large ones
# are not, and the memory of a step stays small.
TOGETHER = 2**20


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov's momentum, decoupled weight decay and AdamW's size of step.

    parameters: matrices (A, C), or parameter groups of such. dtype: of the Newton-Schulz iteration, which does nearly
    all of the arithmetic: bfloat16 is exact enough, and pays where the processor has it.
    State of each parameter: `momentum`, of its shape, there from the start.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
        dtype: torch.dtype = torch.float32,
    ):
        self.dtype = dtype
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        for group in self.param_groups:
            for parameter in group["params"]:
                assert parameter.dim() == 2, "Muon is for matrices; vectors go to AdamW"
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            lr, mu, decay = group["lr"], group["momentum"], group["weight_decay"]
            for parameters in of_one_shape([p for p in group["params"] if p.grad is not None]):
                directions = orthogonal(torch.stack([self._direction(p, mu) for p in parameters])).unbind()
                for parameter, direction in zip(parameters, directions, strict=True):
                    # W <- (1 - lr * decay) W - lr * 0.2 sqrt(max(A, C)) O (Moonlight, Liu et al. 2025):
                    # the entries of O have a mean square of 1 / max(A, C), those of AdamW's step of about 0.2^2,
                    # so that one learning rate suits both.
                    parameter.mul_(1 - lr * decay)
                    parameter.add_(direction, alpha=-lr * 0.2 * math.sqrt(max(parameter.shape)))

    def _direction(self, parameter: Tensor, mu: float) -> Tensor:
        """Nesterov's momentum, in the dtype of the iteration. Its length does not matter, so M may be a mean."""
        gradient, momentum = parameter.grad, self.state[parameter]["momentum"]
        assert gradient is not None
        momentum.lerp_(gradient, 1 - mu)  # M <- mu M + (1 - mu) G
        return gradient.lerp(momentum, mu).to(self.dtype)  # (1 - mu) G + mu M


def of_one_shape(parameters: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """The parameters in lists of one shape, of `TOGETHER` entries at most or of one parameter."""
    shapes: dict[torch.Size, list[Tensor]] = defaultdict(list)
    for parameter in parameters:
        shapes[parameter.shape].append(parameter)
    for shape, same in shapes.items():
        count = max(1, TOGETHER // shape.numel())
        for start in range(0, len(same), count):
            yield same[start : start + count]


def orthogonal(matrices: Tensor) -> Tensor:
    """U V^T of each matrix U S V^T, nearly: the singular values become numbers between about 0.7 and 1.2.

    matrices: (N, A, C) -> (N, A, C).
    """
    if matrices.shape[1] > matrices.shape[2]:  # X X^T is the smaller product for a wide matrix
        return orthogonal(matrices.mT.contiguous()).mT
    # The singular values must be at most 1 to begin with; the Frobenius norm is no less than the largest.
    x = matrices / (torch.linalg.vector_norm(matrices, dim=(1, 2), keepdim=True) + EPS)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        # X <- a X + b (X X^T) X + c (X X^T)^2 X (Jordan et al. 2024): each singular value s <- a s + b s^3 + c s^5
        gram = x @ x.mT  # (N, A, A)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x
