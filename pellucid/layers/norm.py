"""Norm layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pellucid.operations.norm import layer_norm, rms_norm


class RMSNorm(nn.Module):
    """RMSNorm over the last dimension. offset: the stored weight is the scale minus one, as in Gemma."""

    def __init__(self, size: int, eps: float, offset: bool = False):
        super().__init__()
        self.eps, self.offset = eps, offset
        self.weight = nn.Parameter(torch.zeros(size) if offset else torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, 1 + self.weight.float() if self.offset else self.weight, self.eps)


class LayerNorm(nn.Module):
    """LayerNorm over the last dimension, with weight and bias."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.weight, self.bias, self.eps)
