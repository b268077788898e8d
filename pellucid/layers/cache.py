"""The key-value cache of plain generation: contiguous, and bounded in layers that see only a window.

B rows, T new tokens, S tokens held, K key-value heads, D head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pellucid.errors import InputError

FIRST_SIZE = 256  # tokens that a buffer holds before it grows


def seen_tokens(length: int, new: int, window: int | None) -> int:
    """How many of the last `length` tokens the last `new` of them can see between them."""
    return length if window is None else min(length, window - 1 + new)


class LayerCache:
    """Keys and values of one layer, (B, K, size, D), which grow with the text. With a window, only what can still be
    seen is kept."""

    def __init__(self, shape: tuple[int, int, int, int], window: int | None, dtype: torch.dtype, device: torch.device):
        B, K, capacity, D = shape
        self.window = window
        # With a window, twice that: the tokens are moved to the front only once in `window` steps.
        self.limit = capacity if window is None else min(capacity, 2 * window)
        self.keys = torch.empty(B, K, min(self.limit, FIRST_SIZE), D, dtype=dtype, device=device)
        self.values = torch.empty_like(self.keys)
        self.held = 0

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Take in (B, K, T, D) and return the keys and values that these T tokens can see, (B, K, S, D)."""
        new = key.shape[2]
        seen = seen_tokens(self.held + new, new, self.window)
        if self.held + new > self.limit:  # only ever with a window
            return self._append_full(key, value, seen)
        self._make_room(self.held + new)
        self.keys[:, :, self.held : self.held + new] = key
        self.values[:, :, self.held : self.held + new] = value
        self.held += new
        return self.keys[:, :, self.held - seen : self.held], self.values[:, :, self.held - seen : self.held]

    def _make_room(self, needed: int) -> None:
        """Buffers of at least `needed` tokens, doubled so that a token is moved less than twice on average."""
        B, K, size, D = self.keys.shape
        if needed <= size:
            return
        size = min(self.limit, max(needed, 2 * size))
        keys, values = self.keys.new_empty(B, K, size, D), self.keys.new_empty(B, K, size, D)
        keys[:, :, : self.held] = self.keys[:, :, : self.held]
        values[:, :, : self.held] = self.values[:, :, : self.held]
        self.keys, self.values = keys, values

    def _append_full(self, key: Tensor, value: Tensor, seen: int) -> tuple[Tensor, Tensor]:
        """The limit is reached: keep what later tokens can see, at the front."""
        assert self.window is not None
        keys = torch.cat((self.keys[:, :, : self.held], key), dim=2)[:, :, -seen:]
        values = torch.cat((self.values[:, :, : self.held], value), dim=2)[:, :, -seen:]
        self.held = 0
        self._make_room(min(seen, self.window))
        self.held = min(seen, self.window)
        self.keys[:, :, : self.held] = keys[:, :, -self.held :]
        self.values[:, :, : self.held] = values[:, :, -self.held :]
        return keys, values

    def select(self, rows: Tensor) -> None:
        self.keys, self.values = self.keys[rows], self.values[rows]


class KVCache:
    """One `LayerCache` a layer, and the document number of every token held.

    batch_size: B. capacity: the most tokens a row may hold; memory is taken as they come.
    windows: each layer's window or None.
    """

    def __init__(
        self,
        batch_size: int,
        capacity: int,
        windows: Sequence[int | None],
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ):
        shape = (batch_size, num_kv_heads, capacity, head_dim)
        self.capacity = capacity
        self.layers = [LayerCache(shape, window, dtype, device) for window in windows]
        self.length = 0
        self.documents: Tensor | None = None  # (B, length); None while every row is one document

    def extend(self, new: int, documents: Tensor | None) -> None:
        """Make place for `new` tokens a row, `documents` (B, new) being their document numbers."""
        if self.length + new > self.capacity:
            raise InputError(
                f"the cache holds {self.capacity} tokens a row and {self.length + new} are needed: make it larger"
            )
        if documents is not None:
            if self.documents is None:  # the tokens until now were document 0
                self.documents = documents.new_zeros(documents.shape[0], self.length)
            self.documents = torch.cat((self.documents, documents), dim=1)
        elif self.documents is not None:  # unsaid: they go on with the document before them
            self.documents = torch.cat((self.documents, self.documents[:, -1:].expand(-1, new)), dim=1)
        self.length += new

    def select(self, rows: Tensor) -> None:
        """Keep only these rows, in this order. rows: (R,), integers."""
        for layer in self.layers:
            layer.select(rows)
        if self.documents is not None:
            self.documents = self.documents[rows]

    def num_bytes(self) -> int:
        """The memory that the buffers take now."""
        return sum(2 * layer.keys.numel() * layer.keys.element_size() for layer in self.layers)
