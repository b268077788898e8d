"""GGUF in: metadata and tensors of one memory-mapped file. What the file claims is checked before it is believed.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pellucid.checkpoints.gguf_quants import FORMATS, UNREADABLE, Bytes, Format, dequantise
from pellucid.errors import InputError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32

# Value types of the metadata: number -> (struct format, numpy type).
SCALARS: dict[int, tuple[str, str]] = {
    0: ("<B", "u1"), 1: ("<b", "i1"), 2: ("<H", "<u2"), 3: ("<h", "<i2"), 4: ("<I", "<u4"), 5: ("<i", "<i4"),
    6: ("<f", "<f4"), 7: ("<?", "?"), 10: ("<Q", "<u8"), 11: ("<q", "<i8"), 12: ("<d", "<f8"),
}  # fmt: skip
STRING, ARRAY = 8, 9
PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies. `shape` is in PyTorch's order (the file has it reversed), `start` in bytes."""

    name: str
    shape: tuple[int, ...]
    format: Format
    start: int
    size: int


class _Cursor:
    """Reads forward through the header; every length is compared with what is left before it is used."""

    def __init__(self, data: Bytes, path: Path) -> None:
        self.data, self.path, self.position, self.end = data.data, path, 0, len(data)

    def take(self, size: int, what: str) -> memoryview:
        if size > self.end - self.position:
            raise InputError(
                f"{self.path}: the file ends inside {what}: {size} bytes are needed at byte {self.position} "
                f"and {self.end - self.position} are left; fetch the file again"
            )
        self.position += size
        return self.data[self.position - size : self.position]

    def number(self, layout: str, what: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout), what))[0]

    def string(self, what: str) -> str:
        size = self.number("<Q", what)
        start = self.position
        try:
            return str(self.take(size, what), "utf-8")
        except UnicodeDecodeError:
            raise InputError(f"{self.path}: {what} at byte {start} is not UTF-8") from None

    def value(self, kind: int, what: str) -> Any:
        if kind in SCALARS:
            return self.number(SCALARS[kind][0], what)
        if kind == STRING:
            return self.string(what)
        if kind == ARRAY:
            return self.array(what)
        raise InputError(f"{self.path}: {what} has the value type {kind}, which GGUF does not know")

    def array(self, what: str) -> list[Any]:
        kind, count = self.number("<I", what), self.number("<Q", what)
        if kind in SCALARS:
            dtype = np.dtype(SCALARS[kind][1])
            return np.frombuffer(self.take(count * dtype.itemsize, what), dtype).tolist()
        if kind != STRING:
            raise InputError(f"{self.path}: {what} is an array of the value type {kind}; scalars and strings are read")
        if count * 8 > self.end - self.position:  # each string has a length of 8 bytes
            raise InputError(f"{self.path}: {what} claims {count} strings, more than the rest of the file can hold")
        return self.strings(count, what)

    def strings(self, count: int, what: str) -> list[str]:
        """`string`, so many times: vocabularies have a hundred thousand of them."""
        found, sized = [], struct.Struct("<Q")
        for _ in range(count):
            if (start := self.position + sized.size) > self.end:
                break
            stop = start + sized.unpack_from(self.data, self.position)[0]
            try:
                text = str(self.data[start:stop], "utf-8") if stop <= self.end else None
            except UnicodeDecodeError:
                text = None
            if text is None:
                break
            found.append(text)
            self.position = stop
        return found + [self.string(what) for _ in range(count - len(found))]  # the first of them says what is wrong


class GGUF:
    """A GGUF file: `metadata` (plain Python values, arrays as lists) and `tensors` (name -> `TensorInfo`).

    Versions 2 and 3, little endian. Opening reads the header alone; tensors are read from the mapping when asked for.
    Raises `InputError` that names the file and the place for whatever does not hold together.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise InputError(f"{path}: there is no such file")
        if self.path.stat().st_size < 24:
            raise InputError(f"{path}: the file is shorter than a GGUF header (24 bytes)")
        self._data: Bytes = np.memmap(self.path, np.uint8, mode="c")  # private: whoever writes to a tensor gets a copy
        cursor = _Cursor(self._data, self.path)
        tensor_count, metadata_count = self._read_head(cursor)
        self.metadata: Mapping[str, Any] = self._read_metadata(cursor, metadata_count)
        self.tensors: Mapping[str, TensorInfo] = self._read_tensors(cursor, tensor_count)

    def _read_head(self, cursor: _Cursor) -> tuple[int, int]:
        magic = bytes(cursor.take(4, "the magic"))
        if magic != MAGIC:
            raise InputError(f"{self.path}: this is not a GGUF file: it begins with {magic!r}, not {MAGIC!r}")
        version = cursor.number("<I", "the version")
        if version not in VERSIONS:
            if version & 0xFFFF == 0:
                raise InputError(f"{self.path}: this is a big-endian GGUF file; little-endian ones are read")
            raise InputError(f"{self.path}: this is GGUF version {version}; versions 2 and 3 are read")
        self.version = version
        tensors, pairs = cursor.number("<Q", "the tensor count"), cursor.number("<Q", "the metadata count")
        for what, count, least in (("tensors", tensors, 24), ("metadata entries", pairs, 13)):
            if count * least > cursor.end:
                raise InputError(f"{self.path}: the header claims {count} {what}, more than the file can hold")
        return tensors, pairs

    def _read_metadata(self, cursor: _Cursor, count: int) -> dict[str, Any]:
        metadata: dict[str, Any] = {}
        for number in range(count):
            key = cursor.string(f"the name of metadata entry {number}")
            if key in metadata:
                raise InputError(f"{self.path}: the metadata name {key!r} is there twice")
            metadata[key] = cursor.value(cursor.number("<I", f"the type of {key!r}"), f"the value of {key!r}")
        return metadata

    def _read_tensors(self, cursor: _Cursor, count: int) -> dict[str, TensorInfo]:
        claims: dict[str, tuple[tuple[int, ...], Format, int]] = {}
        for number in range(count):
            name = cursor.string(f"the name of tensor {number}")
            if name in claims:
                raise InputError(f"{self.path}: the tensor {name!r} is there twice")
            claims[name] = self._read_claim(cursor, name)
        alignment = self.metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment <= 0 or alignment % 8:
            raise InputError(f"{self.path}: general.alignment = {alignment!r} must be a positive multiple of 8")
        body = -(-cursor.position // alignment) * alignment
        tensors = {}
        for name, (shape, stored, offset) in claims.items():
            if offset % alignment:
                raise InputError(f"{self.path}: the tensor {name!r} begins at {offset}, no multiple of {alignment}")
            size = math.prod(shape) // stored.block * stored.size
            if body + offset + size > cursor.end:
                raise InputError(
                    f"{self.path}: the tensor {name!r} ends at byte {body + offset + size} and the file at byte "
                    f"{cursor.end}: it is truncated; fetch the file again"
                )
            tensors[name] = TensorInfo(name, shape, stored, body + offset, size)
        return tensors

    def _read_claim(self, cursor: _Cursor, name: str) -> tuple[tuple[int, ...], Format, int]:
        """What the header says of one tensor: shape, format, offset."""
        dimensions = cursor.number("<I", f"the shape of {name!r}")
        if not 1 <= dimensions <= 4:
            raise InputError(f"{self.path}: the tensor {name!r} has {dimensions} dimensions; 1 to 4 are possible")
        shape = tuple(cursor.number("<Q", f"the shape of {name!r}") for _ in range(dimensions))[::-1]
        if 0 in shape:
            raise InputError(f"{self.path}: the tensor {name!r} has the empty shape {shape}")
        number = cursor.number("<I", f"the format of {name!r}")
        if number not in FORMATS:
            known = ", ".join(stored.name for stored in FORMATS.values())
            kind = f"format {UNREADABLE[number]}" if number in UNREADABLE else f"unknown format number {number}"
            raise InputError(f"{self.path}: the tensor {name!r} has the {kind}; those read are {known}")
        stored = FORMATS[number]
        if shape[-1] % stored.block:
            raise InputError(
                f"{self.path}: the tensor {name!r} has rows of {shape[-1]}, no multiple of {stored.name}'s "
                f"{stored.block}"
            )
        return shape, stored, cursor.number("<Q", f"the offset of {name!r}")

    def tensor(self, name: str) -> Tensor:
        """The tensor called `name`: F32, F16 and BF16 as a view of the mapped file, others dequantised to float32."""
        info = self.tensors[name]
        data = self._data[info.start : info.start + info.size]
        if info.format.name in PLAIN:
            return torch.from_numpy(np.asarray(data)).view(PLAIN[info.format.name]).view(info.shape)
        return torch.from_numpy(dequantise(np.asarray(data), info.format)).view(info.shape)

    def blocks(self, name: str) -> Tensor:
        """The matrix called `name` as its blocks lie in the mapped file: (out, row bytes), uint8."""
        info = self.tensors[name]
        data = self._data[info.start : info.start + info.size]
        return torch.from_numpy(np.asarray(data)).view(info.shape[0], -1)

    def required(self, key: str, check: Callable[[Any], bool], wanted: str) -> Any:
        """The metadata value `key`, which must be there and pass `check`; `wanted` says what it should be."""
        if key not in self.metadata:
            raise InputError(f"{self.path}: the metadata has no {key!r}")
        if not check(self.metadata[key]):
            raise InputError(f"{self.path}: {key} = {self.metadata[key]!r}: {wanted} is wanted")
        return self.metadata[key]
