"""The attention operation: fused and plain agree, and both with a loop that anybody can check."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pellucid.operations.attention import Mask, attention


def by_hand(query: Tensor, key: Tensor, value: Tensor, sees: Tensor, scale: float, softcap: float | None) -> Tensor:
    """One head, one query, one key at a time. sees: (B, T, S) booleans."""
    B, H, T, _ = query.shape
    group = H // key.shape[1]
    out = torch.zeros_like(query)
    for b in range(B):
        for h in range(H):
            for t in range(T):
                weights = []
                for s in range(key.shape[2]):
                    score = float(query[b, h, t] @ key[b, h // group, s]) * scale
                    if softcap:
                        score = softcap * math.tanh(score / softcap)
                    weights.append(math.exp(score) if sees[b, t, s] else 0.0)
                for s, weight in enumerate(weights):
                    out[b, h, t] += weight / sum(weights) * value[b, h // group, s]
    return out


@given(
    heads=st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 1)]),
    new=st.integers(1, 4),
    old=st.integers(0, 4),
    softcap=st.sampled_from([None, 2.0]),
    seed=st.integers(0, 1000),
)
def test_equals_the_loop(heads: tuple[int, int], new: int, old: int, softcap: float | None, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    H, K = heads
    query = torch.randn(2, H, new, 8, generator=g, dtype=torch.float64)
    key, value = torch.randn(2, 2, K, new + old, 8, generator=g, dtype=torch.float64).unbind()
    sees = torch.rand(2, new, new + old, generator=g) < 0.6
    sees[:, :, -new:] |= torch.eye(new, dtype=torch.bool)  # every query sees itself
    got = attention(query, key, value, Mask(bias=sees[:, None]), scale=0.3, softcap=softcap)
    torch.testing.assert_close(got, by_hand(query, key, value, sees, 0.3, softcap), atol=1e-6, rtol=0)


@given(heads=st.sampled_from([(4, 4), (4, 2), (6, 1)]), new=st.integers(1, 5), seed=st.integers(0, 1000))
def test_looking_does_not_change_the_answer(heads: tuple[int, int], new: int, seed: int) -> None:
    """The fused path and the plain one, for each kind of mask: causal, none, boolean, a bias for each head."""
    g = torch.Generator().manual_seed(seed)
    H, K = heads
    query = torch.randn(2, H, new, 8, generator=g)
    key, value = torch.randn(2, 2, K, new, 8, generator=g).unbind()
    triangle = torch.ones(new, new, dtype=torch.bool).tril()
    bias = torch.randn(1, H, new, new, generator=g).masked_fill(~triangle, -torch.inf)
    for mask in (Mask(causal=True), Mask(), Mask(bias=triangle[None, None]), Mask(bias=bias)):
        seen: list[Tensor] = []

        def look(pattern: Tensor, seen: list[Tensor] = seen) -> Tensor:
            seen.append(pattern)
            return pattern

        fused = attention(query, key, value, mask, scale=0.5)
        plain = attention(query, key, value, mask, scale=0.5, see_pattern=look)
        torch.testing.assert_close(fused, plain, atol=1e-5, rtol=0)
        torch.testing.assert_close(seen[0].sum(-1), torch.ones(2, H, new))


def test_a_replaced_pattern_is_used() -> None:
    query = key = torch.zeros(1, 1, 2, 4)
    value = torch.tensor([[[[1.0] * 4, [3.0] * 4]]])
    first_only = torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]])
    out = attention(query, key, value, Mask(causal=True), scale=1.0, see_pattern=lambda _: first_only)
    assert torch.equal(out, torch.ones(1, 1, 2, 4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 1, 4, 16, 32, generator=g).unbind()
    exact = attention(query, key, value, Mask(causal=True), scale=0.2)
    half = attention(query.to(dtype), key.to(dtype), value.to(dtype), Mask(causal=True), scale=0.2)
    assert half.dtype == dtype
    torch.testing.assert_close(half.float(), exact, atol=0.05, rtol=0)
