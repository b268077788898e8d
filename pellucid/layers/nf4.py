"""NF4: weights as four-bit numbers of a normal distribution (QLoRA, Dettmers et al. 2023, section 3).

Of a matrix, whose rows are laid out one after the other and cut into blocks of 64 weights:
    codes    four bits a weight, which name one of the 16 `LEVELS`, two to a byte, the first in the high half
    scales   of each block the largest |w|, less the mean of all these, in steps of `widths`: a byte each
    widths   of each 256 blocks the width of such a step, float32
    mean     float32

    w = level[code] (mean + width scale)

Scales that are themselves quantised are the paper's "double quantisation". 4 + 8 / 64 + 32 / (64 * 256) = 4.127 bits a
weight.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pellucid.operations.frozen import frozen_product

BLOCK = 64  # weights that have one scale
GROUP = 256  # scales that have one width
CHUNK = 1 << 16  # blocks at a time, so that a large matrix needs little room beside itself

# Quantiles of N(0, 1), divided by the largest: 8 levels above 0, 7 below, and 0 itself (the paper's appendix E).
LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


class NF4(NamedTuple):
    """A matrix (out, in). codes: (blocks * 32,) uint8; scales: (blocks,) int8; widths: (groups,) float32; mean: ()."""

    shape: tuple[int, int]
    codes: Tensor
    scales: Tensor
    widths: Tensor
    mean: Tensor


@torch.no_grad()
def to_nf4(weight: Tensor) -> NF4:
    """Each weight becomes the level nearest to it in its block. weight: (out, in), of any type."""
    flat = weight.detach().reshape(-1)
    blocks = F.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
    largest = blocks.abs().amax(1).float()
    mean = largest.mean()
    groups = F.pad(largest - mean, (0, -len(largest) % GROUP)).view(-1, GROUP)
    widths = (groups.abs().amax(1) / 127).clamp_min(torch.finfo(torch.float32).tiny)
    scales = (groups / widths[:, None]).round().to(torch.int8).view(-1)[: len(largest)].clone()
    codes = torch.cat([_nearest(*part) for part in zip(blocks.split(CHUNK), largest.split(CHUNK), strict=True)])
    return NF4((weight.shape[0], weight.shape[1]), codes, scales, widths, mean)


def _nearest(blocks: Tensor, largest: Tensor) -> Tensor:
    """blocks: (n, 64); largest: (n,), of each block -> codes (n * 32,)."""
    levels = torch.tensor(LEVELS, device=blocks.device)
    share = blocks.float() / largest.clamp_min(torch.finfo(torch.float32).tiny)[:, None]  # a block of zeros: level 0
    codes = torch.bucketize(share, (levels[1:] + levels[:-1]) / 2, out_int32=True).to(torch.uint8).view(-1, 2)
    return codes[:, 0] << 4 | codes[:, 1]


@torch.no_grad()
def from_nf4(matrix: NF4, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weights that it stands for, (out, in), computed in float32."""
    out = torch.empty(len(matrix.scales), BLOCK, dtype=dtype, device=matrix.codes.device)
    pairs = _pairs(matrix.codes.device)
    widths = matrix.widths.repeat_interleave(GROUP)[: len(matrix.scales)]
    scales = torch.addcmul(matrix.mean, widths, matrix.scales.float())
    for start in range(0, len(out), CHUNK):
        stop = min(start + CHUNK, len(out))
        codes = matrix.codes[start * BLOCK // 2 : stop * BLOCK // 2].int()
        values = pairs.index_select(0, codes).view(torch.float32).view(-1, BLOCK)
        out[start:stop] = values.mul_(scales[start:stop, None])
    size = matrix.shape[0] * matrix.shape[1]
    return out.view(-1)[:size].view(matrix.shape)


def _pairs(device: torch.device) -> Tensor:
    """The two levels of each byte of codes, as the bits of one number: (256,) int64."""
    levels, byte = torch.tensor(LEVELS), torch.arange(256)
    return torch.stack([levels[byte >> 4], levels[byte & 15]], dim=1).view(torch.int64).flatten().to(device)


class NF4Linear(nn.Module):
    """x W^T + b with W in NF4. Gradients reach x, and none reach W, which is widened for each product and forgotten.

    Buffers: those of `NF4`, in the same order.
    """

    codes: Tensor
    scales: Tensor
    widths: Tensor
    mean: Tensor

    def __init__(self, matrix: NF4, bias: nn.Parameter | None = None):
        super().__init__()
        self.out_features, self.in_features = matrix.shape
        self.bias = bias
        for name in NF4._fields[1:]:
            self.register_buffer(name, getattr(matrix, name))

    def _apply(self, fn: Any, recurse: bool = True) -> NF4Linear:
        """Moves to a device; `widths` and `mean` stay float32 whatever type the model is cast to."""
        kept = self.widths, self.mean
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.widths, self.mean = (one.to(self.codes.device) for one in kept)
        return self

    @property
    def matrix(self) -> NF4:
        return NF4((self.out_features, self.in_features), self.codes, self.scales, self.widths, self.mean)

    def widened(self, dtype: torch.dtype) -> Tensor:
        """The whole matrix, (out_features, in_features)."""
        return from_nf4(self.matrix, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features), in the type of x, or of autocast."""
        y = frozen_product(x, self.widened)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def extra_repr(self) -> str:
        return f"{self.out_features}, {self.in_features}, NF4"
