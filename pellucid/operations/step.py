"""The native step of `step.cpp`: a list of operations, made once for a model, run for the rows of a step."""

from __future__ import annotations

import ctypes
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pellucid import native

SOURCE = Path(__file__).with_name("step.cpp")
FLAGS = ("-fopenmp",)  # torch's own OpenMP library serves both: one pool of threads
LANES = 16  # a block of the cache holds a multiple of this
FEW = 16  # rows, up to which a row's attention is shared between threads
ACTIVATION_NUMBERS = {"relu": 1, "gelu": 2, "gelu_tanh": 3, "swiglu": 4, "geglu": 2, "geglu_tanh": 3}


class Kind(IntEnum):
    """What an operation does; `step.cpp` and `products.h` have the equations."""

    EMBED = 0
    ANGLES = 1
    NORM = 2
    LINEAR = 3
    STORE = 4
    ATTEND = 5
    TAKE = 6
    SPREAD = 7


TYPES = {torch.float32: 0, torch.bfloat16: 1}
CACHE_TYPES = TYPES | {torch.int8: 5}
BLOCKS = {"Q8_0": 2, "Q4_0": 3, "Q4_1": 4}  # GGUF's names of formats, as they lie in the file


class Rows(ctypes.Structure):
    """`Rows` of operation.h: what the operations read of a step."""

    _fields_ = [
        *(
            (name, ctypes.c_void_p)
            for name in ("tokens", "positions", "sequences", "tables", "wanted", "logits", "adapters", "ranges")
        ),
        *((name, ctypes.c_int64) for name in ("count", "width", "num_wanted")),
    ]


class Operation(ctypes.Structure):
    """`Operation` of operation.h, where each field is explained."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("kind", "type")),
        *((name, ctypes.c_void_p) for name in ("weight", "bias", "factors", "source", "to")),
        *(
            (name, ctypes.c_int64)
            for name in ("inputs", "outputs", "stride", "row", "adapter", "add", "few", "activation", "gated")
        ),
        *((name, ctypes.c_float) for name in ("scale", "cap", "eps")),
        *((name, ctypes.c_int64) for name in ("centred", "heads", "kv_heads", "dim", "window", "block", "apart")),
        *((name, ctypes.c_void_p) for name in ("keys", "values", "key_scales", "value_scales")),
        *((name, ctypes.c_void_p) for name in ("angles", "slopes", "parts")),
        ("spans", ctypes.c_int64),
    ]


@cache
def library() -> ctypes.CDLL | None:
    """The compiled step, or None where it cannot be had (`why_not` says why)."""
    loaded = native.load(SOURCE, *FLAGS)
    if loaded is not None:
        loaded.span.restype = ctypes.c_int64
        loaded.run_step.argtypes, loaded.run_step.restype = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p], None
    return loaded


def span() -> int:
    """Keys that one task of attention reads."""
    loaded = library()
    assert loaded is not None
    return int(loaded.span())


def why_not(dtype: torch.dtype) -> str | None:
    """Why there is no native step for weights of `dtype` on the CPU, in a few words; None where there is."""
    if dtype not in TYPES:
        return f"its type is {str(dtype).removeprefix('torch.')}"
    return None if library() is not None else native.why_not(SOURCE, *FLAGS)


class Program:
    """Operations, and the tensors that they read and write, which it keeps alive."""

    def __init__(self) -> None:
        self._operations: list[Operation] = []
        self._kept: list[Tensor] = []
        self._array: Any = None

    def add(self, kind: Kind, **fields: Any) -> None:
        """The next operation. Tensors are given as they are; those that `None` stands for are null."""
        given = {name: self._pointer(value) for name, value in fields.items() if value is not None}
        self._operations.append(Operation(kind=kind, **given))

    def run(self, rows: Rows) -> None:
        """All operations, in their order."""
        if self._array is None:
            self._array = (Operation * len(self._operations))(*self._operations)
        loaded = library()
        assert loaded is not None
        loaded.run_step(ctypes.byref(self._array), len(self._array), ctypes.byref(rows))

    def _pointer(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        self._kept.append(value)
        return value.data_ptr()


class NativeLinear:
    """x -> x W^T through the native step alone, for a weight (out, in) of a type that `why_not` does not refuse."""

    def __init__(self, weight: Tensor):
        self.weight = weight.detach().contiguous()

    def __call__(self, x: Tensor) -> Tensor:
        """x: (rows, in) -> (rows, out), float32."""
        outputs, inputs = self.weight.shape
        y, program = torch.empty(len(x), outputs), Program()
        program.add(Kind.LINEAR, type=TYPES[self.weight.dtype], weight=self.weight, source=x.float().contiguous(), to=y,
                    inputs=inputs, outputs=outputs)  # fmt: skip
        program.run(Rows(count=len(x)))
        return y


def describe(dtype: torch.dtype) -> str:
    """What computes the linear layers of a model that generates, of weights of `dtype`."""
    reason = why_not(dtype)
    return "native" if reason is None else f"PyTorch (not native: {reason})"
