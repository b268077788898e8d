"""The cache and the masks: what a token sees, compared with a definition that looks at one pair at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pellucid.errors import InputError
from pellucid.layers.cache import KVCache, LayerCache, seen_tokens
from pellucid.layers.visibility import visibility
from pellucid.operations.attention import Mask, from_first_to_self

CPU = torch.device("cpu")


@given(
    window=st.sampled_from([None, 1, 2, 3, 5, 8]),
    pieces=st.lists(st.integers(1, 9), min_size=1, max_size=12),
)
def test_a_layer_s_cache_returns_the_last_tokens_that_are_seen(window: int | None, pieces: list[int]) -> None:
    total = sum(pieces)
    everything = torch.arange(float(total)).view(1, 1, total, 1)
    cache = LayerCache((1, 1, total, 1), window, torch.float32, CPU)
    end = 0
    for new in pieces:
        start, end = end, end + new
        keys, values = cache.append(everything[:, :, start:end], -everything[:, :, start:end])
        expected = everything[:, :, end - seen_tokens(end, new, window) : end]
        assert torch.equal(keys, expected) and torch.equal(values, -expected)
    if window is not None:
        assert cache.keys.shape[2] <= 2 * window  # bounded, however long the text


@given(
    rows=st.lists(st.lists(st.integers(-1, 2), min_size=6, max_size=6).map(sorted), min_size=1, max_size=3),
    new=st.integers(1, 6),
    window=st.sampled_from([None, 1, 2, 4]),
)
def test_visibility_is_causal_windowed_and_within_the_document(
    rows: list[list[int]], new: int, window: int | None
) -> None:
    documents = torch.tensor(rows)
    mask = visibility(new, 6, window, documents, None, CPU)
    assert (mask.first is None) == (new < 6)
    bias = mask.bias if mask.first is None else from_first_to_self(mask.first)[:, None]
    assert bias is not None
    seen = seen_tokens(6, new, window)
    for b, row in enumerate(rows):
        for t in range(new):
            for s in range(seen):
                query, key = 6 - new + t, 6 - seen + s
                sees = key <= query and row[key] == row[query] and (window is None or query - key < window)
                assert bool(bias[b, 0, t, s]) == sees


def test_no_mask_is_made_where_none_is_needed() -> None:
    """These three reach the fastest kernels."""
    assert visibility(5, 5, None, None, None, CPU).causal
    assert visibility(5, 5, 8, None, None, CPU).causal  # the window is not reached yet
    for window in (None, 4, 12):  # one new token sees all that the cache gives it
        assert visibility(1, 9, window, None, None, CPU) == Mask()


def test_alibi_falls_off_with_distance() -> None:
    mask = visibility(3, 3, None, None, torch.tensor([1.0, 0.5]), CPU)
    inf = torch.inf
    expected = torch.tensor([[0, -inf, -inf], [-1, 0, -inf], [-2, -1, 0]])
    assert mask.bias is not None
    assert torch.equal(mask.bias, torch.stack((expected, expected / 2))[None])


def test_a_full_cache_says_both_numbers() -> None:
    cache = KVCache(1, 4, [None], 1, 2, torch.float32, CPU)
    cache.extend(3, None)
    with pytest.raises(InputError, match="holds 4 tokens a row and 5 are needed"):
        cache.extend(2, None)
