"""Where a token stands: rotary frequencies and their scalings, sinusoids, ALiBi slopes."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor


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
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True
    # Llama 3
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
