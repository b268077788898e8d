"""Products with a matrix that is not trained, of which nothing is kept for the gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.compiler.disable  # type: ignore[untyped-decorator]
def frozen_product(x: Tensor, matrix: Callable[[torch.dtype], Tensor]) -> Tensor:
    """x W^T, (..., in) -> (..., out), in the type of x, or of autocast. Gradients reach x alone.

    matrix: gives W, (out, in), in a type; it is asked again when the gradient comes, so that what it makes (a cast, a
    matrix out of few bits) is not held meanwhile, as autograd would hold it.
    """
    device = x.device.type
    if torch.is_autocast_enabled(device):
        x = x.to(torch.get_autocast_dtype(device))
    y: Tensor = _FrozenProduct.apply(x, matrix)  # type: ignore[no-untyped-call]
    return y


class _FrozenProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Callable[[torch.dtype], Tensor]) -> Tensor:
        ctx.matrix = matrix
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x, matrix(x.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        # y = x W^T;  dL/dx = dL/dy W
        return gradient @ ctx.matrix(gradient.dtype), None
