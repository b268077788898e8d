"""Sets of tokens as bits, lowest first: an eighth of what a mask takes, a thirty-second of logits. V entries a row."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def pack(inside: Tensor) -> Tensor:
    """(N, V), bool -> (N, V / 8, rounded up), uint8."""
    return torch.from_numpy(np.packbits(inside.cpu().numpy(), axis=-1, bitorder="little")).to(inside.device)


def unpack(bits: Tensor, size: int) -> Tensor:
    """(N, at least `size` / 8), uint8 -> (N, `size`), bool."""
    shifts = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (bits[..., None] >> shifts & 1).bool().flatten(-2)[..., :size]  # (N, 8 * bytes) before it is cut
