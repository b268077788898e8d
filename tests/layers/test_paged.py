"""The paged cache: how it lies in memory."""

from __future__ import annotations

import pytest
import torch

from pellucid.layers.paged import PagedCache


@pytest.mark.parametrize("as_bytes", [False, True])
def test_a_block_of_all_layers_stands_together(as_bytes: bool) -> None:
    """So that the first blocks of a large cache are a few pages, and not some of each layer."""
    layers, heads, size, block = 5, 2, 8, 16
    cache = PagedCache(9, block, [None] * layers, heads, size, torch.float32, torch.device("cpu"), as_bytes=as_bytes)
    for held in (cache.keys, cache.values, *(cache.scales if cache.scales is not None else ())):
        places = [held[layer, number].data_ptr() for number in range(9) for layer in range(layers)]
        assert places == [held.data_ptr() + n * held[0, 0].nbytes for n in range(9 * layers)]
        assert held[0, 0].is_contiguous()
