"""The names of tensors in GGUF and here, and the three ways in which their numbers differ.

- Llama's rotary turns neighbouring rows there and halves here: the rows of query and key are permuted.
- Gemma's norms are stored there with the one added.
- GPT-2's query, key and value are one tensor there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from pellucid.models.config import ModelConfig
from pellucid.models.families import parameter_shapes

TOP = {
    "token_embd": "embedding",
    "position_embd": "positions",
    "output_norm": "final_norm",
    "output": "head",
}
BLOCK = {
    "attn_norm": "attention_norm",
    "attn_q": "attention.query",
    "attn_k": "attention.key",
    "attn_v": "attention.value",
    "attn_output": "attention.output",
    "attn_q_norm": "attention.query_norm",
    "attn_k_norm": "attention.key_norm",
    "post_attention_norm": "attention_post_norm",
    "ffn_norm": "feed_forward_norm",
    "ffn_gate": "feed_forward.gate",
    "ffn_up": "feed_forward.up",
    "ffn_down": "feed_forward.down",
    "post_ffw_norm": "feed_forward_post_norm",
}
FUSED = "attn_qkv"
PERMUTED = "llama"  # the architecture whose query and key rows are permuted
IGNORED = ("rope_freqs.weight",)  # no weight: read with the metadata


def to_ours(config: ModelConfig, architecture: str, name: str, tensor: Tensor) -> dict[str, Tensor]:
    """One tensor of a GGUF file as ours, by our names. The name and shape are among the `expected_shapes`."""
    stem, _, kind = name.rpartition(".")
    if stem in TOP:
        ours = TOP[stem]
    else:
        _, layer, part = stem.split(".")
        if part == FUSED:
            rows = [heads * config.head_dim for heads in (config.num_heads, config.num_kv_heads, config.num_kv_heads)]
            parts = zip(("query", "key", "value"), tensor.split(rows), strict=True)
            return {f"blocks.{layer}.attention.{which}.{kind}": rows for which, rows in parts}
        ours = f"blocks.{layer}.{BLOCK[part]}"
    if architecture == PERMUTED and ours.endswith(("attention.query", "attention.key")):
        tensor = halves(tensor, config.head_dim)
    if config.norm_offset and ours.endswith("norm"):
        tensor = tensor - 1
    return {f"{ours}.{kind}": tensor}


def to_theirs(config: ModelConfig, architecture: str, state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Our tensors as those of a GGUF file, one at a time, in our order."""
    top = {ours: theirs for theirs, ours in TOP.items()}
    block = {ours: theirs for theirs, ours in BLOCK.items()}
    for name, tensor in state.items():
        stem, _, kind = name.rpartition(".")
        if config.norm_offset and stem.endswith("norm"):
            tensor = tensor.float() + 1
        if not stem.startswith("blocks."):
            yield f"{top[stem]}.{kind}", tensor
            continue
        _, layer, part = stem.split(".", 2)
        if architecture == "gpt2" and part in ("attention.query", "attention.key", "attention.value"):
            if part == "attention.query":
                parts = [state[f"blocks.{layer}.attention.{which}.{kind}"] for which in ("query", "key", "value")]
                yield f"blk.{layer}.{FUSED}.{kind}", torch.cat(parts)
            continue
        if architecture == PERMUTED and part in ("attention.query", "attention.key"):
            tensor = neighbours(tensor, config.head_dim)
        yield f"blk.{layer}.{block[part]}.{kind}", tensor


def expected_shapes(config: ModelConfig, architecture: str) -> dict[str, tuple[int, ...]]:
    """The name and shape of every tensor of a GGUF file of this config."""
    meta = {name: torch.empty(shape, device="meta") for name, shape in parameter_shapes(config).items()}
    return {name: tuple(tensor.shape) for name, tensor in to_theirs(config, architecture, meta)}


def halves(rows: Tensor, head_dim: int) -> Tensor:
    """Rows whose rotary pairs are neighbours -> rows whose pairs are half a head apart. (H D, ...) -> (H D, ...)"""
    return rows.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).reshape(rows.shape)


def neighbours(rows: Tensor, head_dim: int) -> Tensor:
    """The way back from `halves`."""
    return rows.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).reshape(rows.shape)
