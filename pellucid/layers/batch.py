"""What a batch is, beside its tokens: one small object that travels through `forward`. There is no global context."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pellucid.layers.cache import KVCache
from pellucid.layers.paged import PagedStep
from pellucid.layers.slots import TiledStep

PADDING = -1  # the document number of padding


@dataclass(frozen=True, slots=True)
class Batch:
    """Positions, document borders and the cache of a batch of B rows of T tokens.

    positions: (B, T), each token's place in its own document, from 0.
    documents: (B, T), a number that tokens of one document share, which stand together; a token attends only within
        its document.
        None: each row is one document. Padding has the number `PADDING`.
    cache: the keys and values of the tokens before these, which it also takes in. None: there are none. A `PagedStep`
        or `TiledStep`: the one row (B = 1) holds tokens of many sequences, and it knows which.
    """

    positions: Tensor
    documents: Tensor | None = None
    cache: KVCache | PagedStep | TiledStep | None = None
