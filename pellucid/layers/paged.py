"""The key-value cache of the engine: blocks of a fixed size, which sequences share and hold in any order.

After PagedAttention (Kwon et al. 2023, section 4.1). N new tokens of a step, K key-value heads, D head dimension,
B tokens a block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pellucid.layers.cache import seen_tokens
from pellucid.layers.slots import SlotCache
from pellucid.layers.visibility import visibility
from pellucid.operations.attention import Mask, attention

ALIGNED = 64  # bytes: a line of the processor's cache


class PagedCache:
    """Keys and values of every layer, in `num_blocks` blocks. windows: each layer's window or None.

    Numbers that are multiplied together lie side by side, P = 2 of bfloat16 and 1 of others. Keys of a layer are
    (blocks, K, D / P, B, P), so that the scores of a block's keys are computed together, values
    (blocks, K, B / P, D, P). In memory a block of all layers stands together: what short texts take are a few pages,
    though the system gives pages of 2 MB.

    dtype: of what is read and written. as_bytes: of a key or value, D bytes and a scale are kept, its largest entry
    / 127.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        windows: Sequence[int | None],
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        as_bytes: bool = False,
    ):
        self.num_blocks, self.block_size, self.windows = num_blocks, block_size, tuple(windows)
        self.dtype, shape = dtype, (num_blocks, len(self.windows), num_kv_heads)
        scales = zeros((2, *shape, block_size), torch.float32, device) if as_bytes else None  # of keys; of values
        self.scales = None if scales is None else scales.transpose(1, 2)
        dtype = torch.int8 if as_bytes else dtype
        self.beside = P = 2 if dtype == torch.bfloat16 and head_dim % 2 == block_size % 2 == 0 else 1
        self.keys = zeros((*shape, head_dim // P, block_size, P), dtype, device).transpose(0, 1)
        self.values = zeros((*shape, block_size // P, head_dim, P), dtype, device).transpose(0, 1)

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """What stands in the first block of each pair, into the second."""
        if pairs:
            before, after = (torch.tensor(blocks, device=self.keys.device) for blocks in zip(*pairs, strict=True))
            for held in (self.keys, self.values, *(self.scales if self.scales is not None else ())):
                held[:, after] = held[:, before]

    def write(self, layer: int, slots: Tensor, key: Tensor, value: Tensor) -> None:
        """key, value: (N, K, D), of the tokens at `slots` (N,): block * B + place in the block."""
        block, place, P = slots // self.block_size, slots % self.block_size, self.beside
        if self.scales is not None:
            for scales, numbers in zip(self.scales, (key, value), strict=True):
                scales[layer][block, :, place] = numbers.abs().amax(-1).float() / 127
            key, value = (
                torch.round(one.float() / scales[layer][block, :, place, None].clamp_min(1e-30)).to(torch.int8)
                for one, scales in zip((key, value), self.scales, strict=True)
            )
        self.keys[layer][block, :, :, place] = key.unflatten(-1, (-1, P))
        self.values[layer][block, :, place // P, :, place % P] = value

    def read(self, layer: int, table: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """The keys and values (1, K, length, D) of the first `length` tokens in the blocks of `table`."""
        keys = self.keys[layer][table].permute(1, 0, 3, 2, 4).flatten(3).flatten(1, 2)  # (K, blocks * B, D)
        values = self.values[layer][table].permute(1, 0, 2, 4, 3).flatten(1, 3)
        if self.scales is not None:
            key_scales, value_scales = self.scales[:, layer, table].transpose(1, 2).flatten(2)[..., None]
            keys, values = (keys * key_scales).to(self.dtype), (values * value_scales).to(self.dtype)
        return keys[None, :, :length], values[None, :, :length]

    def num_bytes(self) -> int:
        scales = 0 if self.scales is None else self.scales.numel() * self.scales.element_size()
        return 2 * self.keys.numel() * self.keys.element_size() + scales


def zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of zeros. In main memory its pages are taken as they are first written to: gigabytes cost no time."""
    if device.type != "cpu":
        return torch.zeros(*shape, dtype=dtype, device=device)
    size = math.prod(shape) * dtype.itemsize
    pages = torch.from_numpy(np.zeros(size + ALIGNED, np.uint8))  # `torch.zeros` writes to all of them
    start = -pages.data_ptr() % ALIGNED
    return pages[start : start + size].view(dtype).view(*shape)


@dataclass(frozen=True, slots=True)
class Piece:
    """The new tokens of one sequence, which stand together among the N of the step. length: tokens of the sequence, the
    new ones included. table: (blocks,), the ids of its blocks."""

    tokens: slice
    length: int
    table: Tensor


class PagedStep:
    """The cache as one step sees it. slots: (N,); slopes: ALiBi's, (H,), or None."""

    def __init__(self, cache: PagedCache | SlotCache, pieces: Sequence[Piece], slots: Tensor, slopes: Tensor | None):
        self.cache, self.pieces, self.slots = cache, pieces, slots
        device = slots.device
        self.masks: dict[int | None, list[Mask]] = {
            window: [
                visibility(one.tokens.stop - one.tokens.start, one.length, window, None, slopes, device)
                for one in pieces
            ]
            for window in set(cache.windows)
        }
        self.layers = [PagedLayer(self, number) for number in range(len(cache.windows))]


@dataclass(frozen=True, slots=True)
class PagedLayer:
    """One layer of it."""

    step: PagedStep
    number: int

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scale: float,
        softcap: float | None,
        see_pattern: Callable[[Tensor], Tensor] | None,
    ) -> Tensor:
        """Takes in keys and values (1, K, N, D), and returns what queries (1, H, N, D) find: (1, H, N, D)."""
        step, cache = self.step, self.step.cache
        cache.write(self.number, step.slots, key[0].transpose(0, 1), value[0].transpose(0, 1))
        window = cache.windows[self.number]
        mixed = torch.empty_like(query)
        for piece, mask in zip(step.pieces, step.masks[window], strict=True):
            new = piece.tokens.stop - piece.tokens.start
            seen = seen_tokens(piece.length, new, window)
            keys, values = cache.read(self.number, piece.table, piece.length)
            mixed[:, :, piece.tokens] = attention(
                query[:, :, piece.tokens], keys[:, :, -seen:], values[:, :, -seen:], mask,
                scale=scale, softcap=softcap, see_pattern=see_pattern,
            )  # fmt: skip
        return mixed
