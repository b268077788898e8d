"""Mistral 7B and its kin (Jiang et al. 2023): Llama with an optional sliding window in every layer."""

from __future__ import annotations

from typing import Any

from pellucid.models.config import ModelConfig
from pellucid.models.families import llama
from pellucid.models.families.family import Family, HFConfig, one_of
from pellucid.models.families.rope import read_rope, write_rope


def read(config: HFConfig) -> ModelConfig:
    return ModelConfig(
        **llama.read_sizes(config),
        window=config.get("sliding_window", 4096),
        activation=one_of(config, "hidden_act", llama.GATED, "silu"),
        rope=read_rope(config),
        tie_embeddings=config.get("tie_word_embeddings", False),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    return {
        **llama.write_sizes(config),
        **write_rope(config.rope),
        "sliding_window": config.window,
        "hidden_act": llama.hf_activation(config),
    }


MISTRAL = Family("mistral", "MistralForCausalLM", read, write, llama.WEIGHTS, ignored=("rotary_emb.inv_freq",))
