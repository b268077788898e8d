"""y = x W^T + b with the weight laid out beforehand as the processor's kernel reads it.

`torch.nn.functional.linear` hands oneDNN a plain matrix, which it rearranges in every call; at batch 1 that takes
longer than the product. oneDNN's own layout, made once, reads a bfloat16 weight two to three times as fast.
"""

from __future__ import annotations

import torch
from torch import Tensor


def why_not_packable(weight: Tensor) -> str | None:
    """Why `weight` (out, in) cannot be packed here, in a few words, or None when it can."""
    if weight.device.type != "cpu":
        return f"it is on {weight.device.type}"
    if weight.dtype not in (torch.float32, torch.bfloat16):
        return f"its type is {str(weight.dtype).removeprefix('torch.')}"
    if not torch.backends.mkldnn.is_available():
        return "this build of torch has no oneDNN"
    if weight.dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "oneDNN has no bfloat16 kernels for this processor"
    return None


def pack(weight: Tensor) -> Tensor:
    """`weight` (out, in) in oneDNN's blocked layout: the same numbers, readable by `packed_linear` alone."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), None)
    return packed


def packed_linear(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """x: (..., in); packed: `pack` of (out, in); bias: (out,) or None. Returns (..., out)."""
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return y
