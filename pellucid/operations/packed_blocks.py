"""x W^T over blocks of integers through PyTorch's own kernel for 4 bits: the next best where the native step is not.

`_weight_int4pack_mm_for_cpu` computes in bfloat16, with u in 0 .. 15 and two bfloat16 numbers for each 32 weights:
    w = s (u - 8) + z
    Q4_0   w = d (u - 8)                          s = d, z = 0
    Q4_1   w = d u + m                            s = d, z = m + 8 d
    Q8_0   w = d (16 h + l - 128), two matrices:  s = 16 d, z = 0 for the high halves h; s = d, z = 8 d for the low, l
A row of x against SmolLM2's 1,536 x 576 takes 50 us with Q4_1; widening the blocks for the product takes 1.4 ms, and
the product with a bfloat16 matrix of 3.2 times the size 170 us (one core, AVX512). PyTorch's `_weight_int8pack_mm` has
one scale for a whole row, so that it cannot hold blocks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid.operations.blocks import BLOCK, RANGE, unpack

ROWS = 64  # for more rows of x, widening costs less than this kernel
TILE = 16  # the kernel wants a multiple of so many outputs


def why_not(dtype: torch.dtype, device: torch.device) -> str | None:
    """Why this kernel cannot be used for x of `dtype`, in a few words; None where it can."""
    if device.type != "cpu":
        return f"it is on {device.type}"
    if dtype != torch.bfloat16:
        return f"its type is {str(dtype).removeprefix('torch.')}"
    capability = torch.backends.cpu.get_cpu_capability()
    return None if capability.startswith("AVX") else f"it is slow on this processor ({capability})"


class PackedBlocks:
    """A matrix (out, in), made of blocks (out, row bytes), as the kernel reads it."""

    def __init__(self, blocks: Tensor, format: str):  # noqa: A002
        integers, scale, minimum = unpack(blocks, format)
        unsigned = integers.flatten(1).int() - RANGE[format][0]
        self.outputs = len(blocks)
        if format == "Q8_0":
            unsigned = unsigned + 1  # q + 128
            self._parts = [_pack(unsigned >> 4, 16 * scale, 0 * scale), _pack(unsigned & 15, scale, 8 * scale)]
        else:
            shift = 0 * scale if minimum is None else minimum + 8 * scale
            self._parts = [_pack(unsigned, scale, shift)]

    @property
    def nbytes(self) -> int:
        """Of the matrix as the kernel reads it, scales included."""
        return sum(part.nbytes + scales.nbytes for part, scales in self._parts)

    def __call__(self, x: Tensor) -> Tensor:
        """x: (..., in) bfloat16 -> (..., out)."""
        rows = x.reshape(-1, x.shape[-1])
        products = [torch.ops.aten._weight_int4pack_mm_for_cpu(rows, part, BLOCK, s) for part, s in self._parts]
        y: Tensor = products[0] if len(products) == 1 else products[0] + products[1]
        return y[:, : self.outputs].unflatten(0, x.shape[:-1])


def _pack(unsigned: Tensor, s: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """u (out, in) int32, s and z (out, n) -> the kernel's matrix, and its scales (n, out, 2); outputs are filled up."""
    missing = -len(unsigned) % TILE
    packed: Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(F.pad(unsigned, (0, 0, 0, missing)), 1)
    scales = F.pad(torch.stack((s, z), -1), (0, 0, 0, 0, 0, missing)).transpose(0, 1)
    return packed, scales.bfloat16().contiguous()
