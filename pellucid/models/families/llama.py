"""Llama 1, 2, 3.x (Touvron et al. 2023; Dubey et al. 2024), and what is built alike: SmolLM2, TinyLlama."""

from __future__ import annotations

from typing import Any

from pellucid.models.config import ModelConfig
from pellucid.models.families.family import Family, HFConfig, one_of
from pellucid.models.families.rope import read_rope, write_rope

GATED = {"silu": "swiglu", "gelu": "geglu", "gelu_pytorch_tanh": "geglu_tanh"}

WEIGHTS: dict[str, str | tuple[str, ...]] = {
    "model.embed_tokens.weight": "embedding.weight",
    "model.layers.{}.input_layernorm.weight": "blocks.{}.attention_norm.weight",
    "model.layers.{}.self_attn.q_proj.weight": "blocks.{}.attention.query.weight",
    "model.layers.{}.self_attn.k_proj.weight": "blocks.{}.attention.key.weight",
    "model.layers.{}.self_attn.v_proj.weight": "blocks.{}.attention.value.weight",
    "model.layers.{}.self_attn.o_proj.weight": "blocks.{}.attention.output.weight",
    "model.layers.{}.self_attn.q_proj.bias": "blocks.{}.attention.query.bias",
    "model.layers.{}.self_attn.k_proj.bias": "blocks.{}.attention.key.bias",
    "model.layers.{}.self_attn.v_proj.bias": "blocks.{}.attention.value.bias",
    "model.layers.{}.self_attn.o_proj.bias": "blocks.{}.attention.output.bias",
    "model.layers.{}.post_attention_layernorm.weight": "blocks.{}.feed_forward_norm.weight",
    "model.layers.{}.mlp.gate_proj.weight": "blocks.{}.feed_forward.gate.weight",
    "model.layers.{}.mlp.up_proj.weight": "blocks.{}.feed_forward.up.weight",
    "model.layers.{}.mlp.down_proj.weight": "blocks.{}.feed_forward.down.weight",
    "model.layers.{}.mlp.gate_proj.bias": "blocks.{}.feed_forward.gate.bias",
    "model.layers.{}.mlp.up_proj.bias": "blocks.{}.feed_forward.up.bias",
    "model.layers.{}.mlp.down_proj.bias": "blocks.{}.feed_forward.down.bias",
    "model.norm.weight": "final_norm.weight",
    "lm_head.weight": "head.weight",
}


def read_sizes(config: HFConfig) -> dict[str, Any]:
    """The fields that all descendants of Llama spell alike."""
    return {
        "vocab_size": config["vocab_size"],
        "hidden_size": config["hidden_size"],
        "num_layers": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
        "num_kv_heads": config.get("num_key_value_heads") or config["num_attention_heads"],
        "head_dim": config.get("head_dim") or 0,
        "intermediate_size": config["intermediate_size"],
        "max_positions": config["max_position_embeddings"],
        "norm_eps": config.get("rms_norm_eps", 1e-6),
        "initializer_range": config.get("initializer_range", 0.02),
    }


def write_sizes(config: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "initializer_range": config.initializer_range,
        "tie_word_embeddings": config.tie_embeddings,
        "attention_dropout": 0.0,
    }


def hf_activation(config: ModelConfig) -> str:
    """The name of the gated activation in config.json; the nearest thing when the family has none, so that
    `Family.expresses` finds the difference."""
    return next((theirs for theirs, ours in GATED.items() if ours == config.activation), "silu")


def read(config: HFConfig) -> ModelConfig:
    return ModelConfig(
        **read_sizes(config),
        query_bias=config.get("attention_bias", False),
        output_bias=config.get("attention_bias", False),
        activation=one_of(config, "hidden_act", GATED, "silu"),
        feed_forward_bias=config.get("mlp_bias", False),
        rope=read_rope(config),
        tie_embeddings=config.get("tie_word_embeddings", False),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    return {
        **write_sizes(config),
        **write_rope(config.rope),
        "hidden_act": hf_activation(config),
        "attention_bias": config.query_bias,
        "mlp_bias": config.feed_forward_bias,
    }


LLAMA = Family("llama", "LlamaForCausalLM", read, write, WEIGHTS, ignored=("rotary_emb.inv_freq",))
