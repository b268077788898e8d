"""The key-value cache of a GPU, and a step over it by one kernel: the same blocks as in `paged.py`, laid out in slots.

N new tokens of a step, from sequences whose tables hold W blocks; Z tiles of M queries; H query heads, K key-value
heads, D head dimension, B tokens a block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pellucid.operations import paged_attention


class SlotCache:
    """Keys and values of every layer, (layers, slots, K, D); slot s is place s % B of block s // B.

    A block more than `num_blocks` is there, the last: nobody's, for what only fills up a step. See `PagedCache` for the
    rest. as_bytes: with a scale for each head of a slot, (2, layers, slots, K).
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
        self.num_blocks, self.block_size, self.windows, self.dtype = num_blocks, block_size, tuple(windows), dtype
        shape = (len(self.windows), (num_blocks + 1) * block_size, num_kv_heads)
        self.scales = torch.zeros(2, *shape, device=device) if as_bytes else None  # of keys; of values
        self.keys = torch.zeros(*shape, head_dim, dtype=torch.int8 if as_bytes else dtype, device=device)
        self.values = torch.zeros_like(self.keys)

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """What stands in the first block of each pair, into the second."""
        if pairs:
            before, after = (torch.tensor(blocks, device=self.keys.device) for blocks in zip(*pairs, strict=True))
            for held in (self.keys, self.values, *(self.scales if self.scales is not None else ())):
                by_blocks = held.unflatten(1, (-1, self.block_size))
                by_blocks[:, after] = by_blocks[:, before]

    def write(self, layer: int, slots: Tensor, key: Tensor, value: Tensor) -> None:
        """key, value: (N, K, D), of the tokens at `slots` (N,)."""
        if self.scales is not None:
            for scales, numbers in zip(self.scales, (key, value), strict=True):
                scales[layer, slots] = numbers.abs().amax(-1).float() / 127
            key, value = (
                torch.round(one.float() / scales[layer, slots, :, None].clamp_min(1e-30)).to(torch.int8)
                for one, scales in zip((key, value), self.scales, strict=True)
            )
        self.keys[layer, slots] = key
        self.values[layer, slots] = value

    def all(self, layer: int) -> tuple[Tensor, Tensor]:
        """The keys and values of all slots as they lie, (1, K, slots, D)."""
        return self.keys[layer].transpose(0, 1)[None], self.values[layer].transpose(0, 1)[None]

    def of_blocks(self, layer: int, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """Those of `blocks` (n,) one after the other, in `dtype`: (1, K, n * B, D)."""
        slots = (blocks[:, None] * self.block_size + torch.arange(self.block_size, device=blocks.device)).flatten()
        keys, values = self.keys[layer, slots], self.values[layer, slots]
        if self.scales is not None:
            key_scales, value_scales = self.scales[:, layer, slots, :, None]
            keys, values = (keys * key_scales).to(self.dtype), (values * value_scales).to(self.dtype)
        return keys.transpose(0, 1)[None], values.transpose(0, 1)[None]

    def read(self, layer: int, table: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """The keys and values (1, K, length, D) of the first `length` tokens in the blocks of `table`."""
        keys, values = self.of_blocks(layer, table)
        return keys[:, :, :length], values[:, :, :length]

    def num_bytes(self) -> int:
        scales = 0 if self.scales is None else self.scales.numel() * self.scales.element_size()
        return 2 * self.keys.numel() * self.keys.element_size() + scales


class TiledStep:
    """The cache as one step sees it, in tiles.

    positions, sequences: (N,), of each token: its place in its text, and the row of `tables` (sequences, W) that has
    the blocks of that text. Behind a text's last block stands that of nobody. rows: (Z, M), the tokens of each tile,
    all of one sequence and in their order, the last one again where they are fewer; -1 in tiles that are not used.
    back: (N,), where each token's query stands among the Z * M. slopes: ALiBi's, (H,), or None.
    held: of a cache of bytes the blocks (n,) that are widened for this step, and where among them those of `tables`
    stand (sequences, W).
    """

    def __init__(
        self,
        cache: SlotCache,
        positions: Tensor,
        sequences: Tensor,
        tables: Tensor,
        rows: Tensor,
        back: Tensor,
        slopes: Tensor | None,
        held: tuple[Tensor, Tensor] | None = None,
    ):
        B = cache.block_size
        self.cache, self.back, self.slopes = cache, back, slopes
        self.slots = tables[sequences, positions // B] * B + positions % B
        real, self.rows = rows[:, 0] >= 0, rows.clamp(min=0)
        own = sequences[self.rows[:, 0]]  # (Z,)
        self.widened = None if held is None else held[0]
        listed = tables if held is None else held[1]
        blocks = cache.num_blocks + 1 if self.widened is None else len(self.widened)
        self.seen = {
            window: paged_attention.seen_blocks(positions[self.rows], listed[own], real, blocks, B, window)
            for window in set(cache.windows)
        }
        self.layers = [TiledLayer(self, number) for number in range(len(cache.windows))]


@dataclass(frozen=True, slots=True)
class TiledLayer:
    """One layer of it."""

    step: TiledStep
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
        """As `PagedLayer.attend`: keys and values (1, K, N, D), queries (1, H, N, D) -> (1, H, N, D). The kernel shows
        nobody its pattern."""
        assert see_pattern is None
        step, cache = self.step, self.step.cache
        cache.write(self.number, step.slots, key[0].transpose(0, 1), value[0].transpose(0, 1))
        keys, values = cache.all(self.number) if step.widened is None else cache.of_blocks(self.number, step.widened)
        window = cache.windows[self.number]
        tiles = query[0].transpose(0, 1)[step.rows].transpose(1, 2)  # (Z, H, M, D)
        mixed = paged_attention.compiled()(
            tiles, keys, values, step.seen[window], block_size=cache.block_size, window=window, scale=scale,
            softcap=softcap, slopes=step.slopes,
        )  # fmt: skip
        return mixed.transpose(1, 2).flatten(0, 1)[step.back].transpose(0, 1)[None]
