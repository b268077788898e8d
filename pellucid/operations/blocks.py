"""Weights as blocks of 32 small integers, byte for byte as GGUF files hold them.

Of the weights w_i of a block, with q_i the integers, d the block's scale and m its minimum (both float16):
    Q8_0   w_i = d q_i          q in -127 .. 127   34 bytes: d, then a byte each
    Q4_0   w_i = d q_i          q in -8 .. 7       18 bytes: d, then q + 8, a half of a byte each
    Q4_1   w_i = d q_i + m      q in 0 .. 15       20 bytes: d, m, then a half of a byte each
The low halves of the bytes are the first 16 integers. The layouts are those of ggml (`ggml-common.h`,
https://github.com/ggml-org/llama.cpp). In the shapes below, `out` are rows and n = columns / 32 the blocks of each.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pellucid.errors import InputError

BLOCK = 32
BYTES = {"Q8_0": 34, "Q4_0": 18, "Q4_1": 20}  # of a block
RANGE = {"Q8_0": (-127, 127), "Q4_0": (-8, 7), "Q4_1": (0, 15)}  # of its integers
CHUNK = 1 << 22  # weights at a time, so that a large matrix needs little room beside itself


class Parts(NamedTuple):
    """What blocks hold. integers: (out, n, 32) int8; scale d, minimum m: (out, n) float32; None where there is none."""

    integers: Tensor
    scale: Tensor
    minimum: Tensor | None


def row_bytes(columns: int, format: str) -> int:  # noqa: A002 (what GGUF calls it)
    """Bytes of a row of `columns` weights. Raises `InputError` where they are no whole blocks."""
    if columns % BLOCK:
        raise InputError(f"rows of {columns} weights are no multiple of {BLOCK}: keep such a matrix as it is")
    return columns // BLOCK * BYTES[format]


def to_blocks(weight: Tensor, format: str) -> Tensor:  # noqa: A002
    """Rounds to nearest, as ggml does it, bit for bit. weight: (out, columns) -> (out, row bytes) uint8.

    Raises `InputError` for rows that are no whole blocks, and weights that float16 scales cannot express.
    """
    out = torch.empty(len(weight), row_bytes(weight.shape[1], format), dtype=torch.uint8, device=weight.device)
    rows = max(1, CHUNK // max(1, weight.shape[1]))
    for start in range(0, len(weight), rows):
        part = weight[start : start + rows].detach().float()
        out[start : start + rows] = pack(round_to_nearest(part.unflatten(1, (-1, BLOCK)), format), format)
    return out


def from_blocks(blocks: Tensor, format: str, dtype: torch.dtype = torch.float32) -> Tensor:  # noqa: A002
    """What the blocks stand for, computed in float32. blocks: (out, row bytes) uint8 -> (out, columns) of `dtype`."""
    columns = blocks.shape[1] // BYTES[format] * BLOCK
    out = torch.empty(len(blocks), columns, dtype=dtype, device=blocks.device)
    rows = max(1, CHUNK // max(1, columns))
    for start in range(0, len(blocks), rows):
        out[start : start + rows] = values(unpack(blocks[start : start + rows], format))
    return out


def round_to_nearest(weight: Tensor, format: str) -> Parts:  # noqa: A002
    """weight: (out, n, 32) float32. The integers are rounded with a scale that is not yet rounded, as ggml does it."""
    if format == "Q4_1":
        least = weight.amin(2)
        d = (weight.amax(2) - least) / 15
        integers = ((weight - least.unsqueeze(2)) * _inverse(d) + 0.5).trunc().clamp(0, 15)
        return Parts(integers.to(torch.int8), d, least)
    if format == "Q4_0":  # the weight farthest from 0, of whichever sign, is -8 d
        farthest = weight.gather(2, weight.abs().argmax(2, keepdim=True)).squeeze(2)
        d = farthest / -8
        return Parts(((weight * _inverse(d) + 8.5).trunc().clamp(0, 15) - 8).to(torch.int8), d, None)
    d = weight.abs().amax(2) / 127
    scaled = weight * _inverse(d)
    whole = scaled.abs().floor()
    away = whole + (2 * (scaled.abs() - whole)).floor()  # halves go away from zero
    return Parts((scaled.sign() * away).to(torch.int8), d, None)


def values(parts: Parts) -> Tensor:
    """w = d q + m, float32. -> (out, columns)"""
    weight = parts.integers * parts.scale.unsqueeze(2)
    return (weight if parts.minimum is None else weight + parts.minimum.unsqueeze(2)).flatten(1)


def pack(parts: Parts, format: str) -> Tensor:  # noqa: A002
    """Into bytes; scales and minima are rounded to float16. -> (out, row bytes) uint8. Raises as `to_blocks` does."""
    halves = [part.half().unsqueeze(2) for part in (parts.scale, parts.minimum) if part is not None]
    if not all(bool(half.isfinite().all()) for half in halves):
        raise InputError(f"the weights hold numbers that {format} cannot express: its scales end at 65504")
    integers = parts.integers
    if format != "Q8_0":
        nibbles = (integers - RANGE[format][0]).view(torch.uint8)
        integers = nibbles[..., :16] | nibbles[..., 16:] << 4
    return torch.cat([*(half.view(torch.uint8) for half in halves), integers.view(torch.uint8)], 2).flatten(1)


def unpack(blocks: Tensor, format: str) -> Parts:  # noqa: A002
    """The reverse of `pack`. blocks: (out, row bytes) uint8."""
    blocks = blocks.unflatten(1, (-1, BYTES[format]))  # (out, n, bytes)
    scale = _half(blocks, 0)
    minimum = _half(blocks, 2) if format == "Q4_1" else None
    packed = blocks[..., 2 if minimum is None else 4 :]
    if format == "Q8_0":
        return Parts(packed.contiguous().view(torch.int8), scale, None)
    nibbles = torch.cat([packed & 0x0F, packed >> 4], 2).view(torch.int8)
    return Parts(nibbles + RANGE[format][0], scale, minimum)


def _half(blocks: Tensor, start: int) -> Tensor:
    """The float16 at byte `start` of each block. -> (out, n) float32"""
    return blocks[..., start : start + 2].contiguous().view(torch.float16).squeeze(2).float()


def _inverse(d: Tensor) -> Tensor:
    """1 / d, and 0 where d is 0. (out, n) -> (out, n, 1)"""
    return torch.where(d == 0, 0, 1 / d).unsqueeze(2)
