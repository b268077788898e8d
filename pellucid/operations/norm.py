"""Normalisation: RMSNorm and LayerNorm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm (Zhang & Sennrich 2019, eq. 4) over the last dimension, computed in float32 at least.

    x: (..., E); weight: (E,); the result has the type of `x`.
    """
    # y = x / sqrt(mean(x^2) + eps) * weight
    wide = torch.promote_types(x.dtype, torch.float32)
    return F.rms_norm(x.to(wide), weight.shape, weight.to(wide), eps).to(x.dtype)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """LayerNorm (Ba et al. 2016, eq. 4) over the last dimension. x: (..., E); weight, bias: (E,)."""
    # y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias
    return F.layer_norm(x, weight.shape, weight, bias, eps)
