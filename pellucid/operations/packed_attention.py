"""Causal attention over rows of packed documents, on the CPU: matrix products with one native pass between them.

PyTorch's fused kernel computes what the mask throws away, and its backward pass is slow; this one takes half the time.
Scores exist for a few rows at a time, small enough to stay in the processor's cache, and are computed again in the
backward pass (as FlashAttention does, Dao et al. 2022, section 3.1), so that nothing of size T x T is kept.

B rows, T tokens, H query heads, K key-value heads, G = H / K, D head dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from pellucid.operations import softmax

SCORES = 1 << 20  # at a time
BLOCK, FEWEST = 256, 32  # queries at a time: keys that none of them sees are left out


@torch.library.custom_op(
    "pellucid::packed_attention",
    mutates_args=(),
    schema="(Tensor query, Tensor key, Tensor value, Tensor first, float scale) -> Tensor",
)
def packed_attention(query: Tensor, key: Tensor, value: Tensor, first: Tensor, scale: float) -> Tensor:
    """softmax(Q K^T * scale) V, where a query sees the keys from its `first` to itself.

    query: (B, K, G, T, D); key, value: (B, K, T, D); all contiguous and of one type. first: (B, T), int32, contiguous.
    Returns (B, K, G, T, D).
    """
    out = torch.empty_like(query)
    for rows, tokens, seen in _parts(query, first):
        asked = query[rows, :, :, tokens].flatten(2, 3).flatten(0, 1)  # (rows * K, G * tokens, D)
        keys, values = (x[rows, :, seen].flatten(0, 1) for x in (key, value))  # (rows * K, seen, D)
        scores = asked @ keys.transpose(1, 2)
        _attend(softmax.attend, (scores,), first[rows], tokens, seen, scale)
        answer = out[rows, :, :, tokens]
        answer.copy_((scores @ values).view(answer.shape))
    return out


@packed_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, first: Tensor, scale: float) -> Tensor:
    return torch.empty_like(query)


@torch.library.custom_op(
    "pellucid::packed_attention_backward",
    mutates_args=(),
    schema="(Tensor gradient, Tensor query, Tensor key, Tensor value, Tensor first, float scale)"
    " -> (Tensor, Tensor, Tensor)",
)
def packed_attention_backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, first: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of query, key and value, from that of what `packed_attention` returned."""
    to_query, to_key, to_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
    for rows, tokens, seen in _parts(query, first):
        asked, answer = (x[rows, :, :, tokens].flatten(2, 3).flatten(0, 1) for x in (query, gradient))
        keys, values = (x[rows, :, seen].flatten(0, 1) for x in (key, value))
        scores = asked @ keys.transpose(1, 2)  # P = softmax(S), S = Q K^T * scale
        to_scores = answer @ values.transpose(1, 2)  # dP = dO V^T
        _attend(softmax.attend_backward, (scores, to_scores), first[rows], tokens, seen, scale)
        # dQ = dS K;  dK = dS^T Q;  dV = P^T dO
        part = to_query[rows, :, :, tokens]
        part.copy_((to_scores @ keys).view(part.shape))
        to_key[rows, :, seen] += (to_scores.transpose(1, 2) @ asked).view(key[rows, :, seen].shape)
        to_value[rows, :, seen] += (scores.transpose(1, 2) @ answer).view(value[rows, :, seen].shape)
    return to_query, to_key, to_value


@packed_attention_backward.register_fake
def _(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, first: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, scale = inputs
    ctx.save_for_backward(*tensors)
    ctx.scale = scale


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    to_query, to_key, to_value = packed_attention_backward(gradient.contiguous(), *ctx.saved_tensors, ctx.scale)
    return to_query, to_key, to_value, None, None


packed_attention.register_autograd(_backward, setup_context=_keep)


def _parts(query: Tensor, first: Tensor) -> Iterator[tuple[slice, slice, slice]]:
    """What is computed together: which rows, which of their queries, and the keys that one of these may see."""
    B, K, G, T, _ = query.shape
    block = min(T, BLOCK, max(FEWEST, SCORES // (K * G * T)))
    together = max(1, SCORES // (K * G * block * T))
    for row in range(0, B, together):
        rows = slice(row, min(row + together, B))
        for start in range(0, T, block):
            end = min(start + block, T)
            yield rows, slice(start, end), slice(int(first[rows, start].min()), end)


def _attend(
    kernel: Callable[..., None], scores: tuple[Tensor, ...], first: Tensor, tokens: slice, seen: slice, scale: float
) -> None:
    """The kernel on scores (rows * K, G * tokens, keys), seen as (rows, K, G * tokens, keys)."""
    by_row = (x.view(len(first), -1, *x.shape[1:]) for x in scores)
    kernel(*by_row, first, tokens.stop - tokens.start, tokens.start, seen.start, scale)
