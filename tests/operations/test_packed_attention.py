"""The native attention over packed documents against PyTorch's, with a mask written down pair by pair."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pellucid.layers.visibility import first_seen
from pellucid.operations import packed_attention as module
from pellucid.operations import softmax
from pellucid.operations.attention import Mask, attention

CPU = torch.device("cpu")
needs_native = pytest.mark.skipif(
    softmax.library() is None, reason=f"no native kernels: {softmax.why_not(torch.float32)}"
)


def peer(query: Tensor, key: Tensor, value: Tensor, documents: Tensor, window: int | None, scale: float) -> Tensor:
    T = query.shape[2]
    distance = torch.arange(T)[:, None] - torch.arange(T)
    sees = (documents[:, :, None] == documents[:, None]) & (distance >= 0)
    if window is not None:
        sees = sees & (distance < window)
    return F.scaled_dot_product_attention(query, key, value, sees[:, None], scale=scale, enable_gqa=True)


@needs_native
@settings(deadline=None, max_examples=40)
@given(
    documents=st.lists(st.lists(st.integers(-1, 3), min_size=37, max_size=37).map(sorted), min_size=1, max_size=4),
    heads=st.sampled_from([(2, 1), (4, 2), (3, 3)]),
    window=st.sampled_from([None, 1, 5, 100]),
    block=st.sampled_from([1, 7, 32, 256]),
    together=st.sampled_from([1, 10_000, 1 << 20]),
)
def test_output_and_gradients_are_pytorchs(documents, heads, window, block, together) -> None:
    torch.manual_seed(len(documents))
    B, (H, K) = len(documents), heads
    numbers = torch.tensor(documents)
    inputs = [torch.randn(B, n, 37, 8) for n in (H, K, K)]
    upstream = torch.randn(B, H, 37, 8)
    results = []
    before = module.BLOCK, module.FEWEST, module.SCORES
    module.BLOCK, module.FEWEST, module.SCORES = block, 1, together
    try:
        for ours in (True, False):
            leaves = [x.clone().requires_grad_() for x in inputs]
            if ours:
                mask = Mask(first=first_seen(37, window, numbers, CPU))
                out = attention(*leaves, mask, scale=0.3)
            else:
                out = peer(*leaves, numbers, window, 0.3)
            out.backward(upstream)
            results.append([out.detach()] + [x.grad for x in leaves])
    finally:
        module.BLOCK, module.FEWEST, module.SCORES = before
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


@needs_native
def test_bfloat16_is_nearly_as_near_to_the_truth_as_pytorchs() -> None:
    """PyTorch's fused kernel never rounds the scores; this one does, once."""
    torch.manual_seed(0)
    documents = torch.cat((torch.zeros(2, 100), torch.ones(2, 28)), 1).long()
    inputs = [torch.randn(2, n, 128, 64) for n in (6, 2, 2)]
    exact = peer(*inputs, documents, None, 0.125)
    narrow = [x.bfloat16() for x in inputs]
    theirs = (peer(*narrow, documents, None, 0.125).float() - exact).square().mean().sqrt()
    mask = Mask(first=first_seen(128, None, documents, CPU))
    ours = (attention(*narrow, mask, scale=0.125).float() - exact).square().mean().sqrt()
    assert ours < 1.4 * theirs


@needs_native
def test_scores_of_any_size_give_a_softmax() -> None:
    """Large, equal and very negative scores: no overflow, and rows add up to one."""
    for scores in (torch.full((1, 1, 4, 4), 3e4), torch.full((1, 1, 4, 4), -3e4), torch.randn(1, 1, 4, 4) * 1e4):
        expected = scores.masked_fill(~torch.ones(4, 4, dtype=torch.bool).tril(), -torch.inf).softmax(-1)
        softmax.attend(scores, torch.zeros(1, 4, dtype=torch.int32), 4, 0, 0, 1.0)
        torch.testing.assert_close(scores, expected, rtol=1e-6, atol=1e-7)


@needs_native
def test_not_a_number_stays_one() -> None:
    """A broken model is not made to look whole (promise D9)."""
    query = torch.randn(1, 1, 5, 8)
    query[0, 0, 3, 0] = torch.nan
    mask = Mask(first=torch.zeros(1, 5, dtype=torch.int32))
    out = attention(query, torch.randn(1, 1, 5, 8), torch.randn(1, 1, 5, 8), mask, scale=1.0)
    assert out[0, 0, 3].isnan().all() and not out[0, 0, :3].isnan().any()


@needs_native
def test_it_is_one_operation_for_the_compiler() -> None:
    inputs = [torch.randn(2, 2, n, 9, 8, requires_grad=True) for n in (3,)]
    inputs += [torch.randn(2, 2, 9, 8, requires_grad=True) for _ in range(2)]
    first = torch.zeros(2, 9, dtype=torch.int32)
    torch.library.opcheck(module.packed_attention, (*inputs, first, 0.3))


def test_without_native_kernels_output_and_gradients_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    documents = torch.tensor([[0, 0, 0, 1, 1, 2], [0, 1, 1, 1, 1, 1]])
    inputs = [torch.randn(2, n, 6, 8) for n in (4, 2, 2)]
    upstream = torch.randn(2, 4, 6, 8)
    for window in (None, 2):
        mask = Mask(first=first_seen(6, window, documents, CPU))
        results = []
        for how in ("native", "plain", "peer"):
            leaves = [x.clone().requires_grad_() for x in inputs]
            with monkeypatch.context() as patched:
                if how == "plain":
                    patched.setattr(softmax, "why_not", lambda *_: "switched off")
                out = peer(*leaves, documents, window, 0.3) if how == "peer" else attention(*leaves, mask, scale=0.3)
                out.backward(upstream)
            results.append([out.detach()] + [x.grad for x in leaves])
        torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(results[1], results[2], rtol=1e-5, atol=1e-6)
