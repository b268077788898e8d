"""Scaled dot-product attention: one interface, the fastest kernel for what is asked, plain algebra elsewhere.

B batch, T queries, S keys, H query heads, K key-value heads, G = H / K query heads a group, D head dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid.operations.packed_attention import packed_attention


@dataclass(frozen=True, slots=True)
class Mask:
    """Which keys each query sees. At most one of the three is given; none: every query sees every key.

    causal: query t sees the keys up to t (T == S).
    first: (B or 1, T), int32: query t sees the keys from first[t] to t (T == S), and first never falls. Packed
        documents, windows, and both.
    bias: (B or 1, 1 or H, T, S). Boolean: True where the key is seen. Float: added to the scores, -inf where it is not.
    """

    causal: bool = False
    first: Tensor | None = None
    bias: Tensor | None = None


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Mask,
    *,
    scale: float,
    softcap: float | None = None,
    see_pattern: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """softmax(Q K^T * scale) V (Vaswani et al. 2017, eq. 1), H / K query heads sharing each key-value head.

    query: (B, H, T, D); key, value: (B, K, S, D). Returns (B, H, T, D).
    softcap: scores are squeezed into (-softcap, softcap) (Gemma 2).
    see_pattern: is given the weights (B, H, T, S) after the softmax; what it returns is used in their stead.
    Keys and values are never repeated to all heads.
    """
    trained = mask.first is not None or (mask.causal and query.requires_grad)
    if trained and softcap is None and see_pattern is None and query.device.type == "cpu":
        return _packed(query, key, value, mask.first, scale)
    if mask.first is not None:
        mask = Mask(bias=from_first_to_self(mask.first)[:, None])
    if softcap is not None or see_pattern is not None:
        return _plain(query, key, value, mask, scale, softcap, see_pattern)
    B, H, T, D = query.shape
    K = key.shape[1]
    if T == 1 and K < H:  # a single query: its group's heads can stand where its positions would, which costs nothing
        bias = mask.bias
        if bias is not None and bias.shape[1] == H:  # (B, H, 1, S) -> (B, K, G, S)
            bias = bias.reshape(bias.shape[0], K, H // K, -1)
        grouped = query.reshape(B, K, H // K, D)
        return F.scaled_dot_product_attention(grouped, key, value, bias, scale=scale).reshape(B, H, 1, D)
    return F.scaled_dot_product_attention(
        query, key, value, mask.bias, is_causal=mask.causal, scale=scale, enable_gqa=K < H
    )


def from_first_to_self(first: Tensor) -> Tensor:
    """`Mask.first` (B, T) as a boolean mask (B, T, T)."""
    token = torch.arange(first.shape[1], device=first.device)
    return (token >= first[:, :, None]) & (token <= token[:, None])


def _packed(query: Tensor, key: Tensor, value: Tensor, first: Tensor | None, scale: float) -> Tensor:
    """The way of training on the CPU. In bfloat16 its scores are rounded, as in plain algebra; PyTorch's fused kernel,
    which a prompt goes through, keeps them wide."""
    B, H, T, D = query.shape
    K = key.shape[1]
    first = torch.zeros(B, T, dtype=torch.int32) if first is None else first.expand(B, T).contiguous()
    grouped = query.reshape(B, K, H // K, T, D).contiguous()
    mixed: Tensor = packed_attention(grouped, key.contiguous(), value.contiguous(), first, scale)
    return mixed.view(B, H, T, D)


def _plain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Mask,
    scale: float,
    softcap: float | None,
    see_pattern: Callable[[Tensor], Tensor] | None,
) -> Tensor:
    """The same, with every intermediate in the open."""
    B, H, T, D = query.shape
    K, S = key.shape[1], key.shape[2]
    grouped = query.reshape(B, K, (H // K) * T, D)  # the G heads of a group stand one after the other
    scores = (grouped @ key.transpose(-1, -2)).view(B, H, T, S).float() * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask.causal:
        scores = scores.masked_fill(~torch.ones(T, S, dtype=torch.bool, device=scores.device).tril(), -torch.inf)
    elif mask.bias is not None and mask.bias.dtype == torch.bool:
        scores = scores.masked_fill(~mask.bias, -torch.inf)
    elif mask.bias is not None:
        scores = scores + mask.bias
    pattern = scores.softmax(-1).to(query.dtype)  # (B, H, T, S)
    if see_pattern is not None:
        pattern = see_pattern(pattern)
    return (pattern.reshape(B, K, (H // K) * T, S) @ value).view(B, H, T, D)
