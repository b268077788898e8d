"""Activations of the feed-forward layer, plain and gated."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU's tanh approximation (Hendrycks & Gimpel 2016, section 2), as in GPT-2 and Gemma."""
    return F.gelu(x, approximate="tanh")


# The gated units of "GLU Variants Improve Transformer" (Shazeer 2020): act(gate) * up.
ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {  # name: (function, gated)
    "relu": (F.relu, False),
    "gelu": (F.gelu, False),
    "gelu_tanh": (gelu_tanh, False),
    "swiglu": (F.silu, True),
    "geglu": (F.gelu, True),
    "geglu_tanh": (gelu_tanh, True),
}
