"""GGUF's number formats: blocks of bytes to float32 and back, vectorised.

A quantised row is a sequence of blocks; each holds one or two scales (float16) and small integers. The layouts are
those of ggml (`ggml-common.h`, https://github.com/ggml-org/llama.cpp), byte for byte; `n` is the number of blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Bytes: TypeAlias = NDArray[np.uint8]
Floats: TypeAlias = NDArray[np.float32]

CHUNK = 1 << 16  # elements dequantised at once: what is in flight stays in the processor's cache


@dataclass(frozen=True, slots=True)
class Format:
    """A number format: `number` in the file, `block` elements in `size` bytes, and how blocks become float32."""

    name: str
    number: int
    block: int
    size: int
    unpack: Callable[[Bytes, Floats], None] | None = None  # None: stored plainly


def _half(blocks: Bytes, start: int) -> Floats:
    """The float16 that begins at byte `start` of each block. (n, 1)"""
    return blocks[:, start : start + 2].copy().view(np.float16).astype(np.float32)


def _nibbles(packed: Bytes, out: Floats) -> None:
    """16 bytes to 32 integers: the low halves are the first 16. (n, 16) -> (n, 32)"""
    out[:, :16] = packed & 0x0F
    out[:, 16:] = packed >> 4


def _fifth_bits(packed: Bytes) -> Bytes:
    """32 bits to 32 bytes that are 0 or 16. (n, 4) -> (n, 32)"""
    return np.unpackbits(packed, axis=1, bitorder="little") << np.uint8(4)


def _q4_0(blocks: Bytes, out: Floats) -> None:
    """x = d (q - 8), q in 4 bits."""
    _nibbles(blocks[:, 2:], out)
    out -= 8
    out *= _half(blocks, 0)


def _q4_1(blocks: Bytes, out: Floats) -> None:
    """x = d q + m, q in 4 bits."""
    _nibbles(blocks[:, 4:], out)
    out *= _half(blocks, 0)
    out += _half(blocks, 2)


def _q5_0(blocks: Bytes, out: Floats) -> None:
    """x = d (q - 16), q in 4 + 1 bits."""
    _nibbles(blocks[:, 6:], out)
    out += _fifth_bits(blocks[:, 2:6])
    out -= 16
    out *= _half(blocks, 0)


def _q5_1(blocks: Bytes, out: Floats) -> None:
    """x = d q + m, q in 4 + 1 bits."""
    _nibbles(blocks[:, 8:], out)
    out += _fifth_bits(blocks[:, 4:8])
    out *= _half(blocks, 0)
    out += _half(blocks, 2)


def _q8_0(blocks: Bytes, out: Floats) -> None:
    """x = d q, q a signed byte."""
    np.multiply(blocks[:, 2:].view(np.int8), _half(blocks, 0), out=out, casting="unsafe")


def _scales_and_mins(packed: Bytes) -> tuple[Bytes, Bytes]:
    """Eight scales and eight minima of 6 bits each, from 12 bytes. (n, 12) -> (n, 8), (n, 8)

    The low 6 bits of bytes 0-3 and 4-7 are the first four of each; the others have their low 4 bits in bytes 8-11 and
    their high 2 bits on top of the first eight bytes.
    """
    low, high, rest = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([low & 0x3F, (rest & 0x0F) | ((low >> 2) & 0x30)], axis=1)
    mins = np.concatenate([high & 0x3F, (rest >> 4) | ((high >> 2) & 0x30)], axis=1)
    return scales, mins


def _scale_groups(blocks: Bytes, out: Floats) -> None:
    """x = d s q - m t for each of a block's eight groups of 32, s and t in 6 bits (Q4_K, Q5_K)."""
    scales, mins = _scales_and_mins(blocks[:, 4:16])
    groups = out.reshape(-1, 8, 32)
    groups *= (_half(blocks, 0) * scales)[:, :, None]
    groups -= (_half(blocks, 2) * mins)[:, :, None]


def _pairs_of_groups(packed: Bytes, out: Floats) -> None:
    """128 bytes to 8 groups of 32: 32 bytes hold one group in their low halves, the next in their high. (n, 256)"""
    groups, halves = out.reshape(-1, 4, 2, 32), packed.reshape(-1, 4, 32)
    groups[:, :, 0] = halves & 0x0F
    groups[:, :, 1] = halves >> 4


def _q4_k(blocks: Bytes, out: Floats) -> None:
    """d, m, 12 bytes of scales, 256 x 4 bits."""
    _pairs_of_groups(blocks[:, 16:144], out)
    _scale_groups(blocks, out)


def _q5_k(blocks: Bytes, out: Floats) -> None:
    """d, m, 12 bytes of scales, 256 x 1 high bit, 256 x 4 low bits. Bit g of high byte i is of group g, element i."""
    _pairs_of_groups(blocks[:, 48:176], out)
    groups, high = out.reshape(-1, 8, 32), blocks[:, 16:48]
    for group in range(8):
        groups[:, group] += ((high >> group) & 1) << 4
    _scale_groups(blocks, out)


def _q6_k(blocks: Bytes, out: Floats) -> None:
    """x = d s (q - 32): 256 x 4 low bits, 256 x 2 high bits, 16 signed scales (one for 16 elements), d."""
    low = blocks[:, 0:128].reshape(-1, 2, 2, 32)  # (n, half, which 32 bytes, element)
    high = blocks[:, 128:192].reshape(-1, 2, 32)  # (n, half, element): two bits for each quarter of the half
    quarters = out.reshape(-1, 2, 4, 32)
    for quarter in range(4):
        four_bits = (low[:, :, quarter % 2] >> (4 * (quarter // 2))) & 0x0F
        quarters[:, :, quarter] = four_bits | (((high >> (2 * quarter)) & 3) << 4)
    out -= 32
    scales = _half(blocks, 208) * blocks[:, 192:208].view(np.int8)  # (n, 16)
    out.reshape(-1, 16, 16)[:] *= scales[:, :, None]


FORMATS: dict[int, Format] = {
    kind.number: kind
    for kind in (
        Format("F32", 0, 1, 4),
        Format("F16", 1, 1, 2),
        Format("Q4_0", 2, 32, 18, _q4_0),
        Format("Q4_1", 3, 32, 20, _q4_1),
        Format("Q5_0", 6, 32, 22, _q5_0),
        Format("Q5_1", 7, 32, 24, _q5_1),
        Format("Q8_0", 8, 32, 34, _q8_0),
        Format("Q4_K", 12, 256, 144, _q4_k),
        Format("Q5_K", 13, 256, 176, _q5_k),
        Format("Q6_K", 14, 256, 210, _q6_k),
        Format("BF16", 30, 1, 2),
    )
}
BY_NAME = {kind.name: kind for kind in FORMATS.values()}

# What else a file may hold, so that the error can say which it is.
UNREADABLE = {
    9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4",
}  # fmt: skip


def dequantise(data: Bytes, stored: Format) -> Floats:
    """Blocks to float32: bytes of whole blocks, in any shape, to a flat array. Bit for bit what ggml computes."""
    assert stored.unpack is not None, f"{stored.name} is stored plainly"
    blocks = data.reshape(-1, stored.size)
    out = np.empty((len(blocks), stored.block), np.float32)
    step = max(1, CHUNK // stored.block)
    for start in range(0, len(blocks), step):
        stored.unpack(blocks[start : start + step], out[start : start + step])
    return out.reshape(-1)
