"""The native kernels of `kernels.cpp`: loaded once, called on tensors. PyTorch's own path stands beneath them."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from pellucid import native

SOURCE = Path(__file__).with_name("kernels.cpp")
FLAGS = ("-fopenmp",)  # torch's own OpenMP library serves both: one pool of threads
TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
MOST_ROWS = 16  # with more, oneDNN's matrix products are faster


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None where they cannot be had (`why_not` says why)."""
    loaded = native.load(SOURCE, *FLAGS)
    if loaded is not None:
        pointer, number = ctypes.c_void_p, ctypes.c_long
        for kind in TYPES.values():
            linear, norm = getattr(loaded, f"linear_{kind}"), getattr(loaded, f"rms_norm_{kind}")
            linear.argtypes, linear.restype = [*[pointer] * 4, *[number] * 3], None
            norm.argtypes, norm.restype = [*[pointer] * 3, *[number] * 2, ctypes.c_float], None
    return loaded


def why_not(dtype: torch.dtype) -> str | None:
    """Why there are no kernels for tensors of `dtype` on the CPU, in a few words; None where there are."""
    if dtype not in TYPES:
        return f"its type is {str(dtype).removeprefix('torch.')}"
    return None if library() is not None else native.why_not(SOURCE, *FLAGS)


class NativeLinear:
    """y = x W^T + b, read straight from the plain weight (out, in), which stays as it is.

    For at most MOST_ROWS rows of x; oneDNN does more. Each row's result is the same whatever the other rows are.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None):
        self.weight, self.bias = weight.detach().contiguous(), None if bias is None else bias.detach().contiguous()
        self._kernel = getattr(library(), f"linear_{TYPES[weight.dtype]}")
        self._weight_at = self.weight.data_ptr()
        self._bias_at = None if self.bias is None else self.bias.data_ptr()
        self._outputs, self._inputs = weight.shape

    def __call__(self, x: Tensor) -> Tensor:
        """x: (..., in) -> (..., out)."""
        rows = x.numel() // self._inputs
        if rows > MOST_ROWS or x.dtype != self.weight.dtype:
            return torch.nn.functional.linear(x, self.weight, self.bias)
        x = x.contiguous()
        y = x.new_empty(*x.shape[:-1], self._outputs)
        self._kernel(x.data_ptr(), self._weight_at, self._bias_at, y.data_ptr(), rows, self._inputs, self._outputs)
        return y


def native_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`operations.norm.rms_norm` of x (..., E) and weight (E,) of one type."""
    x, weight = x.contiguous(), weight.contiguous()
    y = torch.empty_like(x)
    size = weight.numel()
    kernel = getattr(library(), f"rms_norm_{TYPES[x.dtype]}")
    kernel(x.data_ptr(), weight.data_ptr(), y.data_ptr(), x.numel() // size, size, eps)
    return y
