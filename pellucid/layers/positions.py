"""Where a token stands: rotary frequencies and the ways of stretching them, sinusoids, ALiBi slopes.

T positions, D head dimension, E hidden size, H heads.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from pellucid.operations.rotary import rotation_tables


class Rope(BaseModel):
    """Rotary position embedding (RoFormer, Su et al. 2021) and the ways of stretching it to longer contexts.

    `factor` is how many times longer the context became than `original_max_positions`, on which the model was trained.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    theta: float = Field(10000.0, gt=0)
    scaling: Literal["none", "linear", "dynamic", "yarn", "llama3"] = "none"
    factor: float = Field(1.0, ge=1)
    original_max_positions: int | None = Field(None, gt=0)
    # YaRN
    beta_fast: float = Field(32.0, gt=0)
    beta_slow: float = Field(1.0, gt=0)
    attention_factor: float | None = Field(None, gt=0)  # None: 0.1 ln(factor) + 1
    truncate: bool = True
    # Llama 3
    low_frequency_factor: float = Field(1.0, gt=0)
    high_frequency_factor: float = Field(4.0, gt=0)

    @property
    def attention_scale(self) -> float:
        """Of cos and sin: the attention's temperature, put into queries and keys (YaRN, Peng et al. 2023, eq. 22)."""
        if self.scaling != "yarn":
            return 1.0
        return self.attention_factor or 0.1 * math.log(self.factor) + 1.0


def rotation(rope: Rope, head_dim: int, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and signed sin for `positions` (B, T): each (B, T, 1, D), for `operations.rotary`.

    Computed in float32, then rounded to `dtype`, that of the vectors to be turned.
    """
    length = None
    if rope.scaling == "dynamic":  # the only one whose frequencies depend on how long the text is
        length = max(int(positions.max()) + 1, rope.original_max_positions or 1)
    angles = positions[..., None, None].float() * frequencies(rope, head_dim, length, positions.device)
    cos, sin = rotation_tables(angles, rope.attention_scale)
    return cos.to(dtype), sin.to(dtype)


@lru_cache(maxsize=64)
def frequencies(rope: Rope, head_dim: int, length: int | None, device: torch.device) -> Tensor:
    """The angle of each pair per position: (D/2,), float32. `length` is asked for by dynamic scaling alone."""
    theta = rope.theta
    if rope.scaling == "dynamic" and length and rope.original_max_positions:
        # Dynamic NTK (bloc97 & emozilla 2023): the base grows with the length, so that the slowest pair just fits.
        stretch = rope.factor * length / rope.original_max_positions - (rope.factor - 1)
        theta = theta * stretch ** (head_dim / (head_dim - 2))
    pairs = torch.arange(0, head_dim, 2, device=device, dtype=torch.float32)
    base = theta ** (-pairs / head_dim)  # theta_i = theta^(-2i/D)
    if rope.scaling == "linear":  # Position Interpolation (Chen et al. 2023), eq. 4
        return base / rope.factor
    if rope.scaling == "yarn":
        return _yarn(rope, base, head_dim)
    if rope.scaling == "llama3":
        return _llama3(rope, base)
    return base


def _yarn(rope: Rope, base: Tensor, head_dim: int) -> Tensor:
    """NTK-by-parts (YaRN, Peng et al. 2023, section 3.2): fast pairs stay, slow ones interpolate, a ramp between."""
    old_context = rope.original_max_positions
    assert old_context is not None  # ModelConfig sees to it

    def pair_that_turns(times: float) -> float:  # the (real) number of the pair that turns so often in the old context
        return head_dim * math.log(old_context / (times * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = pair_that_turns(rope.beta_fast), pair_that_turns(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    width = high - low or 0.001
    slow = ((torch.arange(head_dim // 2, device=base.device, dtype=torch.float32) - low) / width).clamp(0, 1)
    return base / rope.factor * slow + base * (1 - slow)


def _llama3(rope: Rope, base: Tensor) -> Tensor:
    """Llama 3.1's scaling (reference code of the Llama 3 release): as YaRN's, with the ramp over wavelengths."""
    assert rope.original_max_positions is not None
    turns = rope.original_max_positions * base / (2 * math.pi)  # how often a pair turns in the old context
    low, high = rope.low_frequency_factor, rope.high_frequency_factor
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - keep) * base / rope.factor + keep * base


def sinusoids(positions: Tensor, hidden_size: int) -> Tensor:
    """Sinusoidal encoding (Vaswani et al. 2017, section 3.5) of `positions` (B, T): (B, T, E), float32."""
    # PE(pos, 2i) = sin(pos / 10000^(2i/E));  PE(pos, 2i+1) = cos(pos / 10000^(2i/E))
    even = torch.arange(0, hidden_size, 2, device=positions.device, dtype=torch.float32)
    angles = positions[..., None].float() * 10000.0 ** (-even / hidden_size)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)[..., :hidden_size]


def alibi_slopes(num_heads: int) -> Tensor:
    """The slope of each head (ALiBi, Press et al. 2022, section 3): (H,), float32.

    For a power of two, 2^(-8/H), 2^(-16/H), ...; for others the paper's code takes those of the power below and
    fills up with every second one of the power above.
    """
    power = 2 ** math.floor(math.log2(num_heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    slopes += [2 ** (-8 * (i + 1) / (2 * power)) for i in range(0, 2 * (num_heads - power), 2)]
    return torch.tensor(slopes)
