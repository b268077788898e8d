"""Scaled dot-product attention: one interface, the fused kernel where nothing is asked of it, plain algebra elsewhere.

B batch, T queries, S keys, H query heads, K key-value heads, G = H / K query heads a group, D head dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Mask:
    """Which keys each query sees.

    causal: query t sees the keys up to t and nothing else is to be said (T == S); `bias` is None then.
    bias: (B or 1, 1 or H, T, S). Boolean: True where the key is seen. Float: added to the scores, -inf where it is not.
        None and not causal: every query sees every key.
    """

    causal: bool = False
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
