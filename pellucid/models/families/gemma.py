"""Gemma 2 (Gemma Team 2024) and Gemma 3's text model (2025): norms on both sides, windows by layer."""

from __future__ import annotations

import math
from typing import Any

from pellucid.models.config import ModelConfig
from pellucid.models.families import llama
from pellucid.models.families.family import Family, HFConfig, one_of, only
from pellucid.models.families.rope import read_rope, rope_from, rope_parameters, write_rope

WEIGHTS_2: dict[str, str | tuple[str, ...]] = {
    **llama.WEIGHTS,
    "model.layers.{}.post_attention_layernorm.weight": "blocks.{}.attention_post_norm.weight",
    "model.layers.{}.pre_feedforward_layernorm.weight": "blocks.{}.feed_forward_norm.weight",
    "model.layers.{}.post_feedforward_layernorm.weight": "blocks.{}.feed_forward_post_norm.weight",
}
WEIGHTS_3 = {
    **WEIGHTS_2,
    "model.layers.{}.self_attn.q_norm.weight": "blocks.{}.attention.query_norm.weight",
    "model.layers.{}.self_attn.k_norm.weight": "blocks.{}.attention.key_norm.weight",
}


def read_shared(config: HFConfig, period: int) -> dict[str, Any]:
    """period: every so-many-th layer sees everything, where `layer_types` does not say it."""
    only(config, "use_bidirectional_attention", False)
    depth = config["num_hidden_layers"]
    kinds = config.get("layer_types") or [
        "sliding_attention" if (i + 1) % period else "full_attention" for i in range(depth)
    ]
    bias = config.get("attention_bias", False)
    return {
        **llama.read_sizes(config),
        "head_dim": config.get("head_dim", 256),
        "norm_offset": True,
        "norm_position": "sandwich",
        "query_bias": bias,
        "output_bias": bias,
        "attention_scale": config.get("query_pre_attn_scalar", 256) ** -0.5,
        "attention_softcap": config.get("attn_logit_softcapping"),
        "window": config.get("sliding_window", 4096),
        "window_layers": tuple(kind == "sliding_attention" for kind in kinds),
        "activation": one_of(config, "hidden_activation", llama.GATED, "gelu_pytorch_tanh"),
        "embedding_scale": math.sqrt(config["hidden_size"]),
        "logit_softcap": config.get("final_logit_softcapping"),
        "tie_embeddings": config.get("tie_word_embeddings", True),
    }


def write_shared(config: ModelConfig) -> dict[str, Any]:
    bound = [config.layer_window(layer) is not None for layer in range(config.num_layers)]
    scale = config.attention_scale or config.head_dim**-0.5
    exact = scale**-2  # written as the whole number that it came from
    return {
        **llama.write_sizes(config),
        "attention_bias": config.query_bias,
        "query_pre_attn_scalar": round(exact) if round(exact) ** -0.5 == scale else exact,
        "attn_logit_softcapping": config.attention_softcap,
        "sliding_window": config.window,
        "layer_types": ["sliding_attention" if b else "full_attention" for b in bound],
        "hidden_activation": llama.hf_activation(config),
        "final_logit_softcapping": config.logit_softcap,
    }


def read_2(config: HFConfig) -> ModelConfig:
    caps = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    return ModelConfig(**read_shared({**caps, **config}, period=2), rope=read_rope(config))


def write_2(config: ModelConfig) -> dict[str, Any]:
    return {**write_shared(config), **write_rope(config.rope)}


def read_3(config: HFConfig) -> ModelConfig:
    limit = config["max_position_embeddings"]
    both = config.get("rope_parameters")
    if both is not None and "full_attention" in both:  # transformers 5: one dictionary a kind of layer
        rope = rope_from(both["full_attention"], 1_000_000.0, limit)
        local = rope_from(both.get("sliding_attention", {}), 10_000.0, limit)
    else:
        rope = read_rope(config, default_theta=1_000_000.0)
        local = rope_from({}, config.get("rope_local_base_freq", 10_000.0), limit)
    shared = read_shared(config, period=config.get("sliding_window_pattern", 6))
    return ModelConfig(**shared, qk_norm=True, rope=rope, local_rope=None if local == rope else local)


def write_3(config: ModelConfig) -> dict[str, Any]:
    local = config.local_rope or config.rope
    return {
        **write_shared(config),
        **write_rope(config.rope),
        "rope_parameters": {
            "full_attention": rope_parameters(config.rope),
            "sliding_attention": rope_parameters(local),
        },
        "rope_local_base_freq": local.theta,
    }


GEMMA2 = Family("gemma2", "Gemma2ForCausalLM", read_2, write_2, WEIGHTS_2)
GEMMA3 = Family(
    "gemma3_text", "Gemma3ForCausalLM", read_3, write_3, WEIGHTS_3, classifier="Gemma3TextForSequenceClassification"
)
