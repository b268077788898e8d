"""y = x W^T + b for inference on the CPU, where a step has few rows and the time goes into reading the weights.

`torch.nn.functional.linear` hands oneDNN a plain matrix, which it rearranges in every call; at batch 1 that takes
longer than the product. Two ways are faster: our own kernel, which reads the plain matrix nearly as fast as memory
gives it, and, where there is no compiler, oneDNN's own layout, made once beforehand.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pellucid.operations import kernels


def why_not_fast(weight: Tensor) -> str | None:
    """Why there is no faster way than PyTorch's for `weight` (out, in), in a few words, or None when there is."""
    if weight.device.type != "cpu":
        return f"it is on {weight.device.type}"
    return None if kernels.why_not(weight.dtype) is None else why_not_packable(weight.dtype)


def fast_linear(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """x W^T + b in the fastest way here, for a weight (out, in) that will not change and is not refused by
    `why_not_fast`, as a function of x."""
    if kernels.why_not(weight.dtype) is None:
        return kernels.NativeLinear(weight, bias)
    packed = pack(weight)
    return lambda x: packed_linear(x, packed, bias)


def describe_linear(dtype: torch.dtype) -> str:
    """Which of these ways computes linear layers of `dtype` when a model generates, and why not a faster one."""
    native = kernels.why_not(dtype)
    if native is None:
        return f"native, for up to {kernels.MOST_ROWS} rows; PyTorch for more"
    packable = why_not_packable(dtype)
    if packable is None:
        return f"oneDNN, weights packed (not native: {native})"
    return f"PyTorch (not native: {native}; not packed: {packable})"


def why_not_packable(dtype: torch.dtype) -> str | None:
    """Why a weight of `dtype` cannot have oneDNN's layout here, in a few words, or None when it can."""
    if dtype not in (torch.float32, torch.bfloat16):
        return f"its type is {str(dtype).removeprefix('torch.')}"
    if not torch.backends.mkldnn.is_available():
        return "this build of torch has no oneDNN"
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
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
