"""Rotary position embedding: turning pairs of a vector's entries by an angle that grows with the position."""

from __future__ import annotations

import torch
from torch import Tensor


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each head's vector by its position (RoFormer, Su et al. 2021, eq. 34), half-split as Hugging Face stores it.

    x: (B, T, H, D); cos, sin: (B or 1, T, 1, D) as `rotation_tables` makes them. All of one type. Returns (B, T, H, D).
    """
    # The pair of entry i is entry i + D/2:
    #   y_i       = x_i       cos - x_{i+D/2} sin
    #   y_{i+D/2} = x_{i+D/2} cos + x_i       sin
    # `sin` carries the minus sign in its first half, so both lines are one.
    partner = x.roll(x.shape[-1] // 2, dims=-1)
    return torch.addcmul(x * cos, partner, sin)


def rotation_tables(angles: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """cos and signed sin of `angles` (..., D/2), both (..., D), times `scale` (YaRN's attention factor)."""
    cos, sin = angles.cos() * scale, angles.sin() * scale
    return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
