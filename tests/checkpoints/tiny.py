"""Small models of every family with random weights, and a small byte-level tokenizer."""

from __future__ import annotations

from typing import Any

import torch

from pellucid.layers.positions import Rope
from pellucid.models.config import ModelConfig
from pellucid.models.decoder import Decoder
from pellucid.tokenizer.alphabet import ALPHABET
from pellucid.tokenizer.tokenizer import Tokenizer

SIZES: dict[str, Any] = {
    "vocab_size": 272,
    "hidden_size": 64,
    "num_layers": 4,
    "num_heads": 4,
    "num_kv_heads": 2,
    "intermediate_size": 96,
    "max_positions": 64,
}
GEMMA: dict[str, Any] = {
    "norm_position": "sandwich",
    "norm_offset": True,
    "activation": "geglu_tanh",
    "embedding_scale": 8.0,
    "attention_scale": 0.25,
    "tie_embeddings": True,
    "window": 8,
}
LLAMA3 = Rope(
    theta=500000.0,
    scaling="llama3",
    factor=8.0,
    original_max_positions=8192,
    low_frequency_factor=1.0,
    high_frequency_factor=4.0,
)
CONFIGS: dict[str, ModelConfig] = {
    "llama": ModelConfig(**SIZES),
    "llama-tied-wide-heads": ModelConfig(**SIZES, head_dim=32, tie_embeddings=True, norm_eps=1e-6),
    "llama-biases": ModelConfig(**SIZES, query_bias=True, output_bias=True, feed_forward_bias=True),
    "llama-3": ModelConfig(**SIZES, rope=LLAMA3),
    "llama-linear": ModelConfig(**SIZES, rope=Rope(scaling="linear", factor=4.0)),
    "llama-yarn": ModelConfig(**SIZES, rope=Rope(scaling="yarn", factor=4.0, original_max_positions=16)),
    "qwen2": ModelConfig(**SIZES, query_bias=True, rope=Rope(theta=1000000.0)),
    "qwen3": ModelConfig(**SIZES, qk_norm=True, head_dim=32, tie_embeddings=True),
    "gemma2": ModelConfig(
        **SIZES, **GEMMA, attention_softcap=50.0, logit_softcap=30.0, window_layers=(True, False) * 2, norm_eps=1e-6
    ),
    "gemma3": ModelConfig(
        **SIZES,
        **GEMMA,
        qk_norm=True,
        window_layers=(True, True, True, True),
        local_rope=Rope(theta=10000.0),
        rope=Rope(theta=1000000.0, scaling="linear", factor=8.0),
    ),
    "gpt2": ModelConfig(
        **SIZES | {"num_kv_heads": 4},
        norm="layernorm",
        activation="gelu_tanh",
        position="learned",
        query_bias=True,
        output_bias=True,
        feed_forward_bias=True,
        tie_embeddings=True,
    ),
}


def random_model(config: ModelConfig, dtype: torch.dtype = torch.float32) -> Decoder:
    """Every parameter random, biases and norms too, so that none can be lost unseen."""
    model = Decoder(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model.to(dtype).eval()


def tiny_tokenizer(**changes: Any) -> Tokenizer:
    """All bytes, a few merges, three control tokens and one added word; GPT-2's way of splitting unless changed."""
    vocab = {character: number for number, character in enumerate(sorted(ALPHABET))}
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("o", "n"), ("i", "n"), ("1", "2")]
    for left, right in merges:
        vocab[left + right] = len(vocab)
    added = [("<|endoftext|>", True), ("<|im_start|>", True), ("<|im_end|>", True), ("pellucid", False)]
    definition: dict[str, Any] = {
        "added_tokens": [
            {
                "id": len(vocab) + number,
                "content": content,
                "special": special,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
            }
            for number, (content, special) in enumerate(added)
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocab, "merges": [list(pair) for pair in merges]},
    }
    config = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    return Tokenizer(definition | changes, config, {"default": template})


def same_weights(one: Decoder, other: Decoder) -> bool:
    ours, theirs = dict(one.named_parameters()), dict(other.named_parameters())
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def logits(model: Decoder, length: int = 24) -> torch.Tensor:
    tokens = torch.arange(7, 7 + length)[None] % model.config.vocab_size
    with torch.no_grad():
        return model(tokens)
