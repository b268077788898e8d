"""The key-value cache of the engine: blocks of a fixed size, which sequences share and hold in any order.

After PagedAttention (Kwon et al. 2023, section 4.1). N new tokens of a step, K key-value heads, D head dimension,
B tokens a block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pellucid.layers.cache import seen_tokens
from pellucid.layers.visibility import visibility
from pellucid.operations.attention import Mask, attention


class PagedCache:
    """Keys and values of every layer, in `num_blocks` blocks. windows: each layer's window or None.

    A key's entries lie apart, each beside the same entry of the block's other keys: (blocks, K, D, B), so that the
    scores of neighbours are computed together; values are (blocks, K, B, D).
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
    ):
        self.num_blocks, self.block_size, self.windows = num_blocks, block_size, tuple(windows)
        shape = (len(self.windows), num_blocks, num_kv_heads)
        self.keys = torch.zeros(*shape, head_dim, block_size, dtype=dtype, device=device)
        self.values = torch.zeros(*shape, block_size, head_dim, dtype=dtype, device=device)

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """What stands in the first block of each pair, into the second."""
        if pairs:
            before, after = (torch.tensor(blocks, device=self.keys.device) for blocks in zip(*pairs, strict=True))
            for held in (self.keys, self.values):
                held[:, after] = held[:, before]

    def write(self, layer: int, slots: Tensor, key: Tensor, value: Tensor) -> None:
        """key, value: (N, K, D), of the tokens at `slots` (N,): block * B + place in the block."""
        block, place = slots // self.block_size, slots % self.block_size
        self.keys[layer][block, :, :, place] = key
        self.values[layer][block, :, place] = value

    def read(self, layer: int, table: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """The keys and values (1, K, length, D) of the first `length` tokens in the blocks of `table`."""
        keys = self.keys[layer][table].permute(1, 0, 3, 2).flatten(1, 2)  # (K, blocks * B, D)
        values = self.values[layer][table].transpose(0, 1).flatten(1, 2)
        return keys[None, :, :length], values[None, :, :length]

    def num_bytes(self) -> int:
        return 2 * self.keys.numel() * self.keys.element_size()


@dataclass(frozen=True, slots=True)
class Piece:
    """The new tokens of one sequence, which stand together among the N of the step. length: tokens of the sequence, the
    new ones included. table: (blocks,), the ids of its blocks."""

    tokens: slice
    length: int
    table: Tensor


class PagedStep:
    """The cache as one step sees it. slots: (N,); slopes: ALiBi's, (H,), or None."""

    def __init__(self, cache: PagedCache, pieces: Sequence[Piece], slots: Tensor, slopes: Tensor | None):
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
