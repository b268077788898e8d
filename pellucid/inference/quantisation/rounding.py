"""Rounding a matrix to blocks of 32 small integers: which scale and minimum a block gets, and its integers.

w = d q + m stands for a weight, as in `operations/blocks.py`. A block that just reaches its farthest weight spends its
integers on one outlier; a smaller d errs there and is finer for all others. So a few are tried, and the one with the
least sum of squared errors is taken.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pellucid.operations.blocks import BLOCK, CHUNK, RANGE, Parts, pack, row_bytes

# What is tried, of the range that a block's weights have. Only the first one is tried where it errs nowhere.
FOUR_BITS = (1.0, 1.05, 0.95, 0.9, 0.85, 0.8, 0.7)
EIGHT_BITS = (1.0, 1.004, 1.008)  # a scale of seven bits may be rounded down by 1/128
SHORT_BITS = 7


@dataclass(frozen=True, slots=True)
class Grid:
    """What a block can express. format: of `operations.blocks`.

    short: the minimum is -z d with a whole number z from 0 to 15, and d has so few bits (7) that float16 and bfloat16
    hold it and float16 holds z d: layouts with whole zero points then give the very same numbers.
    """

    format: str
    short: bool = False

    def fit(self, weight: Tensor, importance: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The scale (out, n) and the minimum of each block, as they are stored.

        weight: (out, n, 32) float32; importance: what each of the 32 errors counts, (32,); None: all the same.
        """
        factors = EIGHT_BITS if self.format == "Q8_0" else FOUR_BITS
        scale, minimum = self._candidate(weight, factors[0])
        least = self._loss(weight, scale, minimum, importance)
        for factor in factors[1:]:
            other = self._candidate(weight, factor)
            loss = self._loss(weight, *other, importance)
            better = loss < least
            least = torch.where(better, loss, least)
            scale = torch.where(better, other[0], scale)
            if minimum is not None and other[1] is not None:
                minimum = torch.where(better, other[1], minimum)
        return scale, minimum

    def integers(self, weight: Tensor, scale: Tensor, minimum: Tensor | None) -> Tensor:
        """q = round((w - m) / d), and no farther than the format goes; float32. Shapes broadcast."""
        above = weight if minimum is None else weight - minimum
        return torch.where(scale == 0, 0, above / scale).round().clamp(*RANGE[self.format])

    def _loss(self, weight: Tensor, scale: Tensor, minimum: Tensor | None, importance: Tensor | None) -> Tensor:
        """sum_i h_i (w_i - d q_i - m)^2 of each block, (out, n)."""
        d, m = scale.unsqueeze(2), None if minimum is None else minimum.unsqueeze(2)
        rounded = self.integers(weight, d, m) * d
        squares = ((rounded if m is None else rounded + m) - weight) ** 2
        return squares.sum(2) if importance is None else squares @ importance

    def _candidate(self, weight: Tensor, factor: float) -> tuple[Tensor, Tensor | None]:
        """Scale and minimum for `factor` times the range of each block."""
        if self.format != "Q4_1":
            farthest = weight.gather(2, weight.abs().argmax(2, keepdim=True)).squeeze(2)
            # Q4_0 reaches one step farther down than up: its scale has the sign that puts the farthest weight there.
            return self._stored(factor * (farthest / -8 if self.format == "Q4_0" else farthest.abs() / 127)), None
        low, high = factor * weight.amin(2), factor * weight.amax(2)
        if not self.short:
            return self._stored((high - low) / 15), low.half().float()
        low = low.clamp(max=0)  # 0 can be expressed
        scale = self._stored((high.clamp(min=0) - low) / 15)
        zero = torch.where(scale == 0, 0, -low / scale).round().clamp(0, 15)
        return scale, -zero * scale

    def _stored(self, scale: Tensor) -> Tensor:
        """The scale as the blocks hold it."""
        if self.short:
            fraction, exponent = torch.frexp(scale)
            scale = torch.ldexp((fraction * 2**SHORT_BITS).round(), exponent - SHORT_BITS)
        return scale.half().float()


def round_matrix(weight: Tensor, grid: Grid) -> Tensor:
    """Round to nearest. weight: (out, in) -> blocks (out, row bytes) uint8. Raises `InputError` as `to_blocks` does."""
    columns = weight.shape[1]
    out = torch.empty(len(weight), row_bytes(columns, grid.format), dtype=torch.uint8)
    rows = max(1, CHUNK // columns)
    for start in range(0, len(weight), rows):
        part = weight[start : start + rows].detach().float().unflatten(1, (-1, BLOCK))
        scale, minimum = grid.fit(part)
        integers = grid.integers(part, scale.unsqueeze(2), None if minimum is None else minimum.unsqueeze(2))
        out[start : start + rows] = pack(Parts(integers.to(torch.int8), scale, minimum), grid.format)
    return out
