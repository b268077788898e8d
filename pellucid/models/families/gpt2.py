"""GPT-2 (Radford et al. 2019): learned positions, LayerNorm, GELU, biases everywhere, query, key and value in one."""

from __future__ import annotations

from typing import Any

from pellucid.models.config import ModelConfig
from pellucid.models.families.family import Family, HFConfig, one_of, only

PLAIN = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu": "relu"}

_QKV = ("blocks.{}.attention.query.%s", "blocks.{}.attention.key.%s", "blocks.{}.attention.value.%s")
WEIGHTS: dict[str, str | tuple[str, ...]] = {
    "transformer.wte.weight": "embedding.weight",
    "transformer.wpe.weight": "positions.weight",
    "transformer.h.{}.ln_1.weight": "blocks.{}.attention_norm.weight",
    "transformer.h.{}.ln_1.bias": "blocks.{}.attention_norm.bias",
    "transformer.h.{}.attn.c_attn.weight": tuple(name % "weight" for name in _QKV),
    "transformer.h.{}.attn.c_attn.bias": tuple(name % "bias" for name in _QKV),
    "transformer.h.{}.attn.c_proj.weight": "blocks.{}.attention.output.weight",
    "transformer.h.{}.attn.c_proj.bias": "blocks.{}.attention.output.bias",
    "transformer.h.{}.ln_2.weight": "blocks.{}.feed_forward_norm.weight",
    "transformer.h.{}.ln_2.bias": "blocks.{}.feed_forward_norm.bias",
    "transformer.h.{}.mlp.c_fc.weight": "blocks.{}.feed_forward.up.weight",
    "transformer.h.{}.mlp.c_fc.bias": "blocks.{}.feed_forward.up.bias",
    "transformer.h.{}.mlp.c_proj.weight": "blocks.{}.feed_forward.down.weight",
    "transformer.h.{}.mlp.c_proj.bias": "blocks.{}.feed_forward.down.bias",
    "transformer.ln_f.weight": "final_norm.weight",
    "transformer.ln_f.bias": "final_norm.bias",
    "lm_head.weight": "head.weight",
}
_TRANSPOSED = frozenset(
    f"transformer.h.{{}}.{name}.weight" for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
)


def read(config: HFConfig) -> ModelConfig:
    only(config, "scale_attn_weights", True)
    only(config, "scale_attn_by_inverse_layer_idx", False)
    only(config, "add_cross_attention", False)
    return ModelConfig(
        vocab_size=config["vocab_size"],
        hidden_size=config["n_embd"],
        num_layers=config["n_layer"],
        num_heads=config["n_head"],
        intermediate_size=config.get("n_inner") or 4 * config["n_embd"],
        max_positions=config.get("n_positions", 1024),
        norm="layernorm",
        norm_eps=config.get("layer_norm_epsilon", 1e-5),
        query_bias=True,
        output_bias=True,
        activation=one_of(config, "activation_function", PLAIN, "gelu_new"),
        feed_forward_bias=True,
        position="learned",
        tie_embeddings=config.get("tie_word_embeddings", True),
        initializer_range=config.get("initializer_range", 0.02),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "n_embd": config.hidden_size,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_inner": config.intermediate_size,
        "n_positions": config.max_positions,
        "layer_norm_epsilon": config.norm_eps,
        "activation_function": next((t for t, o in PLAIN.items() if o == config.activation), "gelu_new"),
        "tie_word_embeddings": config.tie_embeddings,
        "initializer_range": config.initializer_range,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
    }


GPT2 = Family(
    "gpt2",
    "GPT2LMHeadModel",
    read,
    write,
    WEIGHTS,
    transposed=_TRANSPOSED,
    prefix="transformer.",
    ignored=(".attn.bias", ".attn.masked_bias"),
)
