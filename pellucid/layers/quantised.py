"""Linear layers and embeddings whose weights are blocks of small integers, and stay so.

This is PyTorch's path: the weights are widened as they are read, a part of the matrix at a time. Where the native step
runs, it reads the blocks themselves (`operations/quantised.h`), and nothing is widened; where there is none, PyTorch's
kernel for 4 bits computes few rows in bfloat16 (`operations/packed_blocks.py`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pellucid.operations import packed_blocks, step
from pellucid.operations.blocks import BLOCK, BYTES, from_blocks
from pellucid.operations.packed_blocks import PackedBlocks

PART = 1 << 18  # weights that are wide at once: they stay in the processor's cache


class Blocks(NamedTuple):
    """A matrix (out, in) as blocks: data (out, row bytes) uint8, in a format of `operations.blocks`."""

    data: Tensor
    format: str


class Quantised(nn.Module):
    """A matrix (out_features, in_features) in blocks. The buffer `blocks` is (out_features, row bytes), uint8."""

    def __init__(self, blocks: Blocks):
        super().__init__()
        self.format = blocks.format
        self.out_features = len(blocks.data)
        self.in_features = blocks.data.shape[1] // BYTES[blocks.format] * BLOCK
        self.blocks: Tensor
        self.register_buffer("blocks", blocks.data)
        self.packed: PackedBlocks | None = None  # once it is used

    def widened(self, dtype: torch.dtype) -> Tensor:
        """The whole matrix, (out_features, in_features)."""
        return from_blocks(self.blocks, self.format, dtype)

    def product(self, x: Tensor) -> Tensor:
        """x W^T: (..., in_features) -> (..., out_features), in the type of x."""
        if self._packs(x):
            self.packed = self.packed or PackedBlocks(self.blocks, self.format)
            return self.packed(x)
        parts = self.blocks.split(max(1, PART // self.in_features))
        products = [F.linear(x, from_blocks(part, self.format, x.dtype)) for part in parts]
        return products[0] if len(products) == 1 else torch.cat(products, dim=-1)

    def _packs(self, x: Tensor) -> bool:
        """Whether PyTorch's kernel for 4 bits is the fastest for x: there is no native step, and few rows."""
        few = x.numel() <= packed_blocks.ROWS * self.in_features
        may = few and not x.requires_grad and packed_blocks.why_not(x.dtype, x.device) is None
        return may and step.why_not(torch.float32) is not None

    def extra_repr(self) -> str:
        return f"{self.out_features}, {self.in_features}, {self.format}"


class QuantisedLinear(Quantised):
    """x W^T + b. Gradients reach x, and none reach W."""

    def __init__(self, blocks: Blocks, bias: nn.Parameter | None = None):
        super().__init__(blocks)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        y = self.product(x)
        return y if self.bias is None else y + self.bias


class QuantisedEmbedding(Quantised):
    """Rows of a matrix by their numbers, in `dtype`; `Module.to` changes that as it changes a parameter's."""

    def __init__(self, blocks: Blocks, dtype: torch.dtype):
        super().__init__(blocks)
        self.empty: Tensor
        self.register_buffer("empty", torch.empty(0, dtype=dtype), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """(...) -> (..., in_features)."""
        rows = from_blocks(self.blocks[tokens.flatten()], self.format, self.empty.dtype)
        return rows.unflatten(0, tokens.shape)
