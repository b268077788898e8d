"""Multi-head attention with grouped key-value heads.

B batch, T tokens, E hidden size, H query heads, K key-value heads, D head dimension, S keys seen.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from pellucid.layers.cache import LayerCache
from pellucid.layers.paged import PagedLayer
from pellucid.layers.slots import TiledLayer
from pellucid.operations.attention import Mask, attention
from pellucid.operations.rotary import rotary

Rotation = tuple[Tensor, Tensor]  # cos and signed sin, (B or 1, T, 1, D)


class Attention(nn.Module):
    """Attention (Vaswani et al. 2017); K < H is grouped-query (Ainslie et al. 2023), K = 1 multi-query (Shazeer 2019).

    make_norm: makes the norm of each head's query and key (QK-norm, Dehghani et al. 2023), or None.
    The output of every part is the output of a named submodule: `query`, `key`, `value`, `query_norm`, `key_norm`,
    `pattern` (the weights after the softmax, (B, H, T, S); computed only while somebody listens there), `output`.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        query_bias: bool = False,
        output_bias: bool = False,
        make_norm: Callable[[int], nn.Module] | None = None,
        scale: float | None = None,
        softcap: float | None = None,
    ):
        super().__init__()
        self.head_dim = head_dim
        self.scale = head_dim**-0.5 if scale is None else scale
        self.softcap = softcap
        self.query: nn.Module = nn.Linear(hidden_size, num_heads * head_dim, bias=query_bias)
        self.key: nn.Module = nn.Linear(hidden_size, num_kv_heads * head_dim, bias=query_bias)
        self.value: nn.Module = nn.Linear(hidden_size, num_kv_heads * head_dim, bias=query_bias)
        self.output: nn.Module = nn.Linear(num_heads * head_dim, hidden_size, bias=output_bias)
        self.query_norm = make_norm(head_dim) if make_norm else None
        self.key_norm = make_norm(head_dim) if make_norm else None
        self.pattern = nn.Identity()

    def forward(
        self, x: Tensor, mask: Mask, rotation: Rotation | None, cache: LayerCache | PagedLayer | TiledLayer | None
    ) -> Tensor:
        """x: (B, T, E) -> (B, T, E). rotation: None for positions that are not rotary."""
        B, T, _ = x.shape
        query = self.query(x).view(B, T, -1, self.head_dim)  # (B, T, H, D)
        key = self.key(x).view(B, T, -1, self.head_dim)  # (B, T, K, D)
        value = self.value(x).view(B, T, -1, self.head_dim)
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        if rotation is not None:
            # Under autocast the tables are wider than the vectors, which are turned in the tables' type.
            query, key = (rotary(x, *rotation).to(value.dtype) for x in (query, key))
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)  # (B, heads, T, D)
        listened_to = self.pattern._forward_hooks or self.pattern._forward_pre_hooks
        see = self.pattern if listened_to else None
        if isinstance(cache, PagedLayer | TiledLayer):
            mixed = cache.attend(query, key, value, scale=self.scale, softcap=self.softcap, see_pattern=see)
        else:
            if cache is not None:
                key, value = cache.append(key, value)  # (B, K, S, D)
            mixed = attention(query, key, value, mask, scale=self.scale, softcap=self.softcap, see_pattern=see)
        return self.output(mixed.transpose(1, 2).reshape(B, T, -1))
