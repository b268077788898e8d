"""GGUF out: a header that names everything, then the tensors one at a time. Version 3, little endian."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import torch
from torch import Tensor

from pellucid.checkpoints.gguf_quants import BY_NAME, Bytes
from pellucid.checkpoints.gguf_read import ARRAY, DEFAULT_ALIGNMENT, MAGIC, STRING
from pellucid.errors import InputError
from pellucid.operations.blocks import BYTES, to_blocks

Plan: TypeAlias = Sequence[tuple[str, tuple[int, ...], str]]
"""The name, shape (in PyTorch's order) and number format of each tensor, in the order of the file."""

_BOOL, _FLOAT32, _UINT32, _INT32, _UINT64 = 7, 6, 4, 5, 10


def write_gguf(
    path: Path,
    metadata: Mapping[str, Any],
    plan: Plan,
    tensors: Iterable[tuple[str, Tensor]],
    progress: Callable[[int], None] = lambda _bytes: None,
) -> None:
    """Writes `metadata` and the tensors of `plan`, which `tensors` must give in its order.

    Whole numbers become uint32 (uint64 where they are larger), others float32; lists hold one type.
    progress is told of every tensor's bytes when they are written.
    """
    sizes = [math.prod(shape) // BY_NAME[kind].block * BY_NAME[kind].size for _, shape, kind in plan]
    with path.open("wb") as file:
        file.write(MAGIC + struct.pack("<IQQ", 3, len(plan), len(metadata)))
        for key, value in metadata.items():
            _write_string(file, key)
            _write_value(file, key, value)
        offset = 0
        for (name, shape, kind), size in zip(plan, sizes, strict=True):
            _write_string(file, name)
            file.write(struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape)))
            file.write(struct.pack("<IQ", BY_NAME[kind].number, offset))
            offset += _aligned(size)
        for (name, shape, kind), size, (given, tensor) in zip(plan, sizes, tensors, strict=True):
            assert given == name, f"{given!r} came where {name!r} was planned"
            assert tensor.dtype == torch.uint8 or tuple(tensor.shape) == shape
            _pad(file)
            data = encode(name, tensor, kind)
            assert data.nbytes == size
            file.write(data.data)
            progress(size)
        _pad(file)


def encode(name: str, tensor: Tensor, kind: str) -> Bytes:
    """The bytes of a tensor in the number format `kind`: F32, F16, BF16, Q8_0, Q4_0 or Q4_1. Flat.

    A tensor of uint8 is taken for the blocks themselves.
    Raises `InputError` for finite numbers that float16 cannot hold (those above 65504).
    """
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.uint8:
        return tensor.numpy().reshape(-1)
    if kind in BYTES:
        return to_blocks(tensor, kind).numpy().reshape(-1)
    if kind == "F16":
        half = tensor.half()
        if bool((half.isinf() & tensor.isfinite()).any()):
            raise InputError(f"the tensor {name!r} holds numbers beyond the range of f16; write bf16 or q8_0")
        return half.view(torch.uint8).numpy().reshape(-1)
    if kind == "BF16":
        return tensor.bfloat16().view(torch.uint8).numpy().reshape(-1)
    return tensor.float().view(torch.uint8).numpy().reshape(-1)


def _aligned(size: int) -> int:
    return -(-size // DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT


def _pad(file: BinaryIO) -> None:
    position = file.tell()
    file.write(bytes(_aligned(position) - position))


def _write_string(file: BinaryIO, text: str) -> None:
    data = text.encode("utf-8")
    file.write(struct.pack("<Q", len(data)) + data)


def _write_value(file: BinaryIO, key: str, value: Any) -> None:
    if isinstance(value, list):
        kind = _kind_of(key, value[0] if value else "")
        if kind == _UINT32:  # lists of numbers are signed in every file of llama.cpp's own
            kind = _INT32
        file.write(struct.pack("<IIQ", ARRAY, kind, len(value)))
        for item in value:
            _write_plain(file, kind, item)
    else:
        kind = _kind_of(key, value)
        file.write(struct.pack("<I", kind))
        _write_plain(file, kind, value)


def _kind_of(key: str, value: Any) -> int:
    if isinstance(value, bool):
        return _BOOL
    if isinstance(value, int):
        return _INT32 if value < 0 else _UINT32 if value < 2**32 else _UINT64
    if isinstance(value, float):
        return _FLOAT32
    if isinstance(value, str):
        return STRING
    raise InputError(f"the metadata {key!r} is a {type(value).__name__}, which GGUF does not hold")


def _write_plain(file: BinaryIO, kind: int, value: Any) -> None:
    if kind == STRING:
        _write_string(file, value)
    else:
        layout = {_BOOL: "<?", _FLOAT32: "<f", _UINT32: "<I", _INT32: "<i", _UINT64: "<Q"}[kind]
        file.write(struct.pack(layout, value))
