"""The decoder: one model for every family, whatever its config says.

B batch, T tokens, E hidden size, V vocabulary.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pellucid.errors import InputError
from pellucid.layers.attention import Attention, Rotation
from pellucid.layers.batch import Batch
from pellucid.layers.cache import KVCache, LayerCache
from pellucid.layers.feed_forward import FeedForward
from pellucid.layers.lora import LoRALinear
from pellucid.layers.nf4 import NF4Linear
from pellucid.layers.norm import LayerNorm, RMSNorm
from pellucid.layers.paged import PagedLayer, PagedStep
from pellucid.layers.positions import Rope, alibi_slopes, rotation, sinusoids
from pellucid.layers.quantised import Quantised, QuantisedEmbedding
from pellucid.layers.slots import TiledLayer, TiledStep
from pellucid.layers.visibility import visibility
from pellucid.models.config import ModelConfig
from pellucid.operations.attention import Mask

CacheLayer = LayerCache | PagedLayer | TiledLayer
Around = tuple[Mask, Rotation | None, CacheLayer | None]  # what a block is given beside its input


class Block(nn.Module):
    """Attention, then feed-forward, each added to the residual stream; `norm_position` says where the norms stand."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        c = config
        norm = partial(make_norm, config)
        self.norm_position = c.norm_position
        self.attention_norm = norm(c.hidden_size)
        self.attention = Attention(
            c.hidden_size,
            c.num_heads,
            c.num_kv_heads,
            c.head_dim,
            query_bias=c.query_bias,
            output_bias=c.output_bias,
            make_norm=norm if c.qk_norm else None,
            scale=c.attention_scale,
            softcap=c.attention_softcap,
        )
        self.feed_forward_norm = norm(c.hidden_size)
        self.feed_forward = FeedForward(c.hidden_size, c.intermediate_size, c.activation, c.feed_forward_bias)
        if c.norm_position == "sandwich":
            self.attention_post_norm = norm(c.hidden_size)
            self.feed_forward_post_norm = norm(c.hidden_size)

    def forward(self, x: Tensor, mask: Mask, rotation: Rotation | None, cache: CacheLayer | None) -> Tensor:
        """x: (B, T, E) -> (B, T, E)."""
        if self.norm_position == "pre":  # GPT-2, Llama: x + f(norm(x))
            x = x + self.attention(self.attention_norm(x), mask, rotation, cache)
            return x + self.feed_forward(self.feed_forward_norm(x))
        if self.norm_position == "post":  # the 2017 transformer: norm(x + f(x))
            x = self.attention_norm(x + self.attention(x, mask, rotation, cache))
            return self.feed_forward_norm(x + self.feed_forward(x))
        # sandwich, Gemma 2: x + norm(f(norm(x)))
        x = x + self.attention_post_norm(self.attention(self.attention_norm(x), mask, rotation, cache))
        return x + self.feed_forward_post_norm(self.feed_forward(self.feed_forward_norm(x)))


class Decoder(nn.Module):
    """A decoder-only language model. `model(tokens, batch)` gives logits; every part's output is a named submodule's.

    seed: of the initial weights. On the meta device nothing is initialised.
    """

    def __init__(self, config: ModelConfig, seed: int = 0):
        super().__init__()
        self.config = config
        self.generation_config: dict[str, Any] = {}  # the checkpoint's own defaults for sampling
        self.embedding: nn.Embedding | QuantisedEmbedding = table(config.vocab_size, config.hidden_size)
        self.positions = table(config.max_positions, config.hidden_size) if config.position == "learned" else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        # With post-norm the last block has ended in a norm already.
        self.final_norm = nn.Identity() if config.norm_position == "post" else make_norm(config, config.hidden_size)
        self.head: nn.Module | None = (
            None if config.tie_embeddings else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        )
        self._windows = [config.layer_window(layer) for layer in range(config.num_layers)]
        self._ropes = [config.layer_rope(layer) for layer in range(config.num_layers)]
        if self.device.type != "meta":
            initialise(self, seed)

    def forward(self, tokens: Tensor, batch: Batch | None = None) -> Tensor:
        """tokens: (B, T) -> logits (B, T, V). batch None: whole rows from position 0, without a cache."""
        return self.logits(self.hidden(tokens, batch))

    def hidden(self, tokens: Tensor, batch: Batch | None = None) -> Tensor:
        """tokens: (B, T) -> what the head reads, after the final norm, (B, T, E)."""
        x, surroundings = self.enter(tokens, batch)
        for block, around in zip(self.blocks, surroundings, strict=True):
            x = block(x, *around)
        return self.final_norm(x)

    def enter(self, tokens: Tensor, batch: Batch | None = None) -> tuple[Tensor, list[Around]]:
        """tokens: (B, T) -> what the first block reads, (B, T, E), and what each block is given beside its input."""
        T = tokens.shape[1]
        if batch is None:
            batch = Batch(torch.arange(T, device=tokens.device).expand_as(tokens))
        x = self._embed(tokens, batch)
        cache = batch.cache
        if isinstance(cache, KVCache):
            cache.extend(T, batch.documents)
        masks = self._masks(T, batch)
        rotations = self._rotations(batch.positions, x.dtype)
        caches = [None] * len(self.blocks) if cache is None else cache.layers
        return x, [
            (masks[window], rotations.get(rope), layer)
            for window, rope, layer in zip(self._windows, self._ropes, caches, strict=True)
        ]

    @property
    def dtype(self) -> torch.dtype:
        """The type that it computes in: of its parameters, though matrices may lie in blocks of integers."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return next(self.parameters()).device

    @property
    def head_weight(self) -> Tensor:
        """The matrix (V, E) of the head, which is the embedding's where the two are tied; a copy if it is quantised."""
        owner = self.embedding if self.head is None else self.head
        weight = owner.widened(self.dtype) if isinstance(owner, Quantised) else owner.weight
        assert isinstance(weight, Tensor)
        return weight

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden: (..., E) -> (..., V)."""
        if self.head is not None:
            logits = self.head(hidden)
        elif isinstance(self.embedding, QuantisedEmbedding):
            logits = self.embedding.product(hidden)
        else:
            logits = F.linear(hidden, self.embedding.weight)
        if self.config.logit_softcap is not None:  # Gemma 2 (2024), section 2
            logits = self.config.logit_softcap * torch.tanh(logits / self.config.logit_softcap)
        return logits

    def weights(self) -> dict[str, Tensor]:
        """Every parameter by name, for a checkpoint. InputError: the model is quantised, or has adapters."""
        if any(isinstance(module, LoRALinear) for module in self.modules()):
            raise InputError(
                "this model has adapters beside its weights: save the adapter (save_adapter), or merge it first "
                "(merge_adapter)"
            )
        if self.quantised:
            raise InputError("this model is quantised, and neither trained nor saved so: load it without quantize")
        return {name: parameter.detach() for name, parameter in self.named_parameters()}

    @property
    def quantised(self) -> bool:
        """Whether any of its matrices lies in few bits."""
        return any(isinstance(module, Quantised | NF4Linear) for module in self.modules())

    def new_cache(self, batch_size: int, capacity: int) -> KVCache:
        """An empty cache for `batch_size` rows of at most `capacity` tokens."""
        c = self.config
        return KVCache(batch_size, capacity, self._windows, c.num_kv_heads, c.head_dim, self.dtype, self.device)

    def _embed(self, tokens: Tensor, batch: Batch) -> Tensor:
        c, positions = self.config, batch.positions
        x = self.embedding(tokens)
        if c.embedding_scale is not None:
            x = x * float(torch.tensor(c.embedding_scale, dtype=x.dtype))  # rounded first, as Gemma was trained
        if self.positions is not None:
            # Who makes a `TiledStep` keeps texts within the context: to look here would wait for the GPU.
            if not isinstance(batch.cache, TiledStep) and (last := int(positions.max())) >= c.max_positions:
                raise InputError(f"position {last} is past the context: learned positions end at {c.max_positions - 1}")
            x = x + self.positions(positions)
        elif c.position == "sinusoidal":
            x = x + sinusoids(positions, c.hidden_size).to(x.dtype)
        return x

    def _masks(self, new: int, batch: Batch) -> dict[int | None, Mask]:
        """One mask for every window that occurs; a paged cache has its own."""
        cache = batch.cache
        if isinstance(cache, PagedStep | TiledStep):
            return dict.fromkeys(self._windows, Mask())
        length = new if cache is None else cache.length
        documents = batch.documents if cache is None else cache.documents
        device = batch.positions.device
        slopes = alibi_slopes(self.config.num_heads).to(device) if self.config.position == "alibi" else None
        return {window: visibility(new, length, window, documents, slopes, device) for window in set(self._windows)}

    def _rotations(self, positions: Tensor, dtype: torch.dtype) -> dict[Rope, Rotation]:
        """One pair of tables for every kind of rotary position that occurs."""
        if self.config.position != "rotary":
            return {}
        return {rope: rotation(rope, self.config.head_dim, positions, dtype) for rope in set(self._ropes)}


def table(rows: int, columns: int) -> nn.Embedding:
    """An embedding that is not initialised: torch's own way of doing that imports its compiler on the meta device."""
    return nn.Embedding(rows, columns, _weight=torch.empty(rows, columns))


def make_norm(config: ModelConfig, size: int) -> nn.Module:
    """The config's norm over `size` entries."""
    if config.norm == "layernorm":
        return LayerNorm(size, config.norm_eps)
    return RMSNorm(size, config.norm_eps, config.norm_offset)


@torch.no_grad()
def initialise(model: Decoder, seed: int) -> None:
    """GPT-2's initialisation (Radford et al. 2019, section 2.3), which Llama-style models share.

    Weights are N(0, initializer_range); those that write into the residual stream are divided by sqrt(2 * num_layers),
    since so many of them are added up there; biases are 0 and norms the identity. The same seed gives the same weights.
    """
    generator = torch.Generator().manual_seed(seed)
    std = model.config.initializer_range
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
        elif parameter.dim() == 2:
            into_stream = name.endswith(("output.weight", "down.weight"))
            scale = std / math.sqrt(2 * model.config.num_layers) if into_stream else std
            parameter.copy_(torch.empty(parameter.shape).normal_(0.0, scale, generator=generator))
