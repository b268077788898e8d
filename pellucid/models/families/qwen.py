"""Qwen 2, 2.5 (Yang et al. 2024) and 3 (2025): Llama with biases on query, key and value, or with QK-norm instead."""

from __future__ import annotations

from typing import Any

from pellucid.models.config import ModelConfig
from pellucid.models.families import llama
from pellucid.models.families.family import Family, HFConfig, one_of
from pellucid.models.families.rope import read_rope, write_rope

WEIGHTS_3: dict[str, str | tuple[str, ...]] = {
    **llama.WEIGHTS,
    "model.layers.{}.self_attn.q_norm.weight": "blocks.{}.attention.query_norm.weight",
    "model.layers.{}.self_attn.k_norm.weight": "blocks.{}.attention.key_norm.weight",
}


def read_shared(config: HFConfig) -> dict[str, Any]:
    window, layers = None, None
    if config.get("use_sliding_window", False) and config.get("sliding_window") is not None:
        window = config["sliding_window"]
        depth = config["num_hidden_layers"]
        first = config.get("max_window_layers", 28)  # despite its name, the first layer that has the window
        kinds = config.get("layer_types") or [
            "sliding_attention" if i >= first else "full_attention" for i in range(depth)
        ]
        layers = tuple(kind == "sliding_attention" for kind in kinds)
    return {
        **llama.read_sizes(config),
        "window": window,
        "window_layers": layers,
        "activation": one_of(config, "hidden_act", llama.GATED, "silu"),
        "rope": read_rope(config),
        "tie_embeddings": config.get("tie_word_embeddings", False),
    }


def write_shared(config: ModelConfig) -> dict[str, Any]:
    bound = [config.layer_window(layer) is not None for layer in range(config.num_layers)]
    return {
        **llama.write_sizes(config),
        **write_rope(config.rope),
        "hidden_act": llama.hf_activation(config),
        "use_sliding_window": config.window is not None,
        "sliding_window": config.window,
        "max_window_layers": bound.index(True) if any(bound) else config.num_layers,
        "layer_types": ["sliding_attention" if b else "full_attention" for b in bound],
    }


def read_2(config: HFConfig) -> ModelConfig:
    return ModelConfig(**read_shared(config), query_bias=True)


def read_3(config: HFConfig) -> ModelConfig:
    bias = config.get("attention_bias", False)
    return ModelConfig(**{"head_dim": 128, **read_shared(config)}, qk_norm=True, query_bias=bias, output_bias=bias)


def write_3(config: ModelConfig) -> dict[str, Any]:
    return {**write_shared(config), "attention_bias": config.query_bias}


QWEN2 = Family("qwen2", "Qwen2ForCausalLM", read_2, write_shared, llama.WEIGHTS, ignored=("rotary_emb.inv_freq",))
QWEN3 = Family("qwen3", "Qwen3ForCausalLM", read_3, write_3, WEIGHTS_3)
