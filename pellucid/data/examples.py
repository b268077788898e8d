"""What a training step reads, and where it comes from.

B rows, T tokens a row (the context).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pellucid.layers.batch import PADDING, Batch

IGNORE = -100  # a target that is not learnt from


@dataclass(frozen=True, slots=True)
class Examples:
    """Rows of tokens, each with the token to predict after it. All (B, T), int64.

    targets: the next token of the same document, or IGNORE where there is none or it is not learnt from.
    positions, documents: as `layers.batch.Batch` has them; padding has the document number `PADDING`.
    """

    tokens: Tensor
    targets: Tensor
    positions: Tensor
    documents: Tensor

    @property
    def supervised(self) -> int:
        """How many targets are learnt from."""
        return int((self.targets != IGNORE).sum())

    @property
    def real(self) -> int:
        """How many tokens are no padding."""
        return int((self.documents != PADDING).sum())

    @property
    def batch(self) -> Batch:
        return Batch(self.positions, self.documents)

    def to(self, device: torch.device) -> Examples:
        """On another device."""
        return Examples(*(x.to(device) for x in (self.tokens, self.targets, self.positions, self.documents)))

    def heaviest(self) -> Examples:
        """These rows, every token of them learnt from."""
        every = torch.where(self.targets == IGNORE, 0, self.targets)
        return Examples(self.tokens, every, self.positions, self.documents)

    def split(self, rows: int) -> list[Examples]:
        """In parts of at most `rows` rows."""
        parts = zip(*(x.split(rows) for x in (self.tokens, self.targets, self.positions, self.documents)), strict=True)
        return [Examples(*part) for part in parts]


class BatchOfRows(Protocol):
    """What a step reads, whatever its loss is: rows of tokens, of which parts can be taken.

    supervised: how many units the loss is the mean of (tokens that are learnt from, pairs that are compared).
    """

    @property
    def tokens(self) -> Tensor: ...

    @property
    def positions(self) -> Tensor: ...

    @property
    def documents(self) -> Tensor: ...

    @property
    def supervised(self) -> int: ...

    @property
    def real(self) -> int: ...

    @property
    def batch(self) -> Batch: ...

    def to(self, device: torch.device) -> BatchOfRows: ...

    def split(self, rows: int) -> Sequence[BatchOfRows]: ...

    def heaviest(self) -> BatchOfRows:
        """The one of this shape that takes the most memory."""


class Batches(Protocol):
    """Rows in a fixed order: number i, which runs on over the epochs, is a pure function of (seed, i) (promise D1)."""

    @property
    def context(self) -> int:
        """T."""

    def __len__(self) -> int:
        """How many rows an epoch has."""

    def read(self, indices: Sequence[int]) -> BatchOfRows:
        """These rows, by their running number: epoch * len(self) + place in the epoch."""


class Rows(Batches, Protocol):
    """Rows whose tokens are to be predicted."""

    def read(self, indices: Sequence[int]) -> Examples: ...
