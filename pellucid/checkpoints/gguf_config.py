"""GGUF's metadata and `ModelConfig`: reading one from the other, and saying which architecture can carry a config.

Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Where a key is missing, we take what llama.cpp takes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from pellucid.checkpoints.gguf_read import GGUF
from pellucid.checkpoints.gguf_rope import exact, llama3_factors, read_rope, write_rope
from pellucid.errors import InputError, did_you_mean
from pellucid.models.config import ModelConfig

# What an architecture's name says without a key.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "gemma2": {"norm_position": "sandwich", "norm_offset": True, "activation": "geglu_tanh"},
    "gemma3": {"norm_position": "sandwich", "norm_offset": True, "activation": "geglu_tanh"},
    "gpt2": {"norm": "layernorm", "activation": "gelu_tanh", "position": "learned"},
}
GEMMA_WINDOW = {"gemma2": (4096, 2), "gemma3": (None, 6)}  # llama.cpp: window, and every which layer has none
GEMMA_27B_LAYERS = {"gemma2": 46, "gemma3": 62}  # llama.cpp knows by these to scale by hidden_size / num_heads


def architecture_of(file: GGUF) -> str:
    """The name in `general.architecture`, one of those that we read."""
    name = file.required("general.architecture", lambda value: isinstance(value, str), "a name")
    if name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise InputError(f"{file.path}: the architecture {name!r} is not read; {known} are{did_you_mean(name, known)}")
    return str(name)


def read_config(file: GGUF) -> ModelConfig:
    """The `ModelConfig` of a GGUF file, from its metadata and the names and shapes of its tensors."""
    architecture = architecture_of(file)

    def integer(key: str) -> int:
        def check(value: Any) -> bool:
            return isinstance(value, int) and value > 0

        return int(file.required(f"{architecture}.{key}", check, "a positive number"))

    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise InputError(f"{file.path}: the tensor 'token_embd.weight' (vocabulary x hidden size) is missing")
    heads = integer("attention.head_count")
    hidden = integer("embedding_length")
    key_value_heads = file.metadata.get(f"{architecture}.attention.head_count_kv", heads)
    if not isinstance(key_value_heads, int):
        raise InputError(
            f"{file.path}: {architecture}.attention.head_count_kv differs by layer, which is not supported"
        )
    head_dim = file.metadata.get(f"{architecture}.attention.key_length", hidden // heads)
    norm = ARCHITECTURES[architecture].get("norm", "rmsnorm")
    epsilon = "attention.layer_norm_rms_epsilon" if norm == "rmsnorm" else "attention.layer_norm_epsilon"
    return ModelConfig(
        vocab_size=embedding.shape[0],
        hidden_size=hidden,
        num_layers=integer("block_count"),
        num_heads=heads,
        num_kv_heads=key_value_heads,
        head_dim=head_dim,
        intermediate_size=integer("feed_forward_length"),
        max_positions=integer("context_length"),
        norm_eps=exact(file.required(f"{architecture}.{epsilon}", lambda v: isinstance(v, float), "a number")),
        query_bias=_has(file, "blk.0.attn_q.bias") or _has(file, "blk.0.attn_qkv.bias"),
        output_bias=_has(file, "blk.0.attn_output.bias"),
        qk_norm=_has(file, "blk.0.attn_q_norm.weight"),
        feed_forward_bias=_has(file, "blk.0.ffn_up.bias"),
        tie_embeddings=not _has(file, "output.weight"),
        **({"rope": read_rope(file, architecture, head_dim)} if architecture != "gpt2" else {}),
        **_read_gemma(file.metadata, architecture, hidden, heads, head_dim, integer("block_count")),
        **ARCHITECTURES[architecture],
    )


def _has(file: GGUF, name: str) -> bool:
    return name in file.tensors


def _read_gemma(
    metadata: Mapping[str, Any], architecture: str, hidden: int, heads: int, head_dim: int, layers: int
) -> dict[str, Any]:
    """What Gemma 2 and 3 have beside the others: windows by layer, soft-caps, scales."""
    if architecture not in GEMMA_WINDOW:
        return {}
    window, period = GEMMA_WINDOW[architecture]
    window = metadata.get(f"{architecture}.attention.sliding_window", window) or None
    pattern = metadata.get(f"{architecture}.attention.sliding_window_pattern", period)
    if isinstance(pattern, int):  # the last of every `pattern` layers sees everything
        pattern = [(layer + 1) % pattern != 0 for layer in range(layers)]
    scaled = hidden // heads if layers == GEMMA_27B_LAYERS[architecture] else head_dim
    fields: dict[str, Any] = {"embedding_scale": hidden**0.5, "attention_scale": scaled**-0.5}
    if window is not None:
        fields |= {"window": window, "window_layers": tuple(map(bool, pattern))}
        if architecture == "gemma3":
            fields["local_rope"] = {"theta": exact(metadata.get("gemma3.rope.freq_base_swa", 10000.0))}
    for field, key in (("attention_softcap", "attn_logit_softcapping"), ("logit_softcap", "final_logit_softcapping")):
        if value := metadata.get(f"{architecture}.{key}"):
            fields[field] = exact(value)
    return fields


def choose_architecture(config: ModelConfig) -> str:
    """The GGUF architecture that carries `config`: the one that, written and read back, gives the same model.

    Raises `InputError` that names the fields which the nearest architecture cannot carry.
    """
    differences = {name: _differences(config, _as_read(config, name)) for name in _candidates(config)}
    for name, fields in differences.items():
        if not fields:
            return name
    name, fields = min(differences.items(), key=lambda item: len(item[1]))
    seen = ", ".join(f"{field} = {value!r}" for field, value in fields.items())
    raise InputError(f"no architecture of llama.cpp expresses this model; the nearest, {name!r}, cannot have {seen}")


def _candidates(config: ModelConfig) -> tuple[str, ...]:
    if config.norm == "layernorm":
        return ("gpt2",)
    if config.norm_position == "sandwich":
        return ("gemma3",) if config.qk_norm else ("gemma2",)
    if config.qk_norm:
        return ("qwen3",)
    return ("qwen2",) if config.query_bias and not config.output_bias else ("llama",)


def write_metadata(config: ModelConfig, architecture: str) -> dict[str, Any]:
    """The keys by which `architecture` describes `config` (those of `general` and `tokenizer` are not among them)."""
    epsilon = "attention.layer_norm_rms_epsilon" if config.norm == "rmsnorm" else "attention.layer_norm_epsilon"
    keys: dict[str, Any] = {
        "block_count": config.num_layers,
        "context_length": config.max_positions,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        epsilon: config.norm_eps,
        "vocab_size": config.vocab_size,
    }
    if architecture != "gpt2":
        keys |= {"attention.key_length": config.head_dim, "attention.value_length": config.head_dim}
        keys |= {"rope.dimension_count": config.head_dim} | write_rope(config.rope)
    if architecture in GEMMA_WINDOW and config.window is not None:
        keys["attention.sliding_window"] = config.window
        pattern = [config.layer_window(layer) is not None for layer in range(config.num_layers)]
        if pattern != [(layer + 1) % GEMMA_WINDOW[architecture][1] != 0 for layer in range(config.num_layers)]:
            keys["attention.sliding_window_pattern"] = pattern
        if config.local_rope is not None:
            keys["rope.freq_base_swa"] = config.local_rope.theta
    if config.attention_softcap is not None:
        keys["attn_logit_softcapping"] = config.attention_softcap
    if config.logit_softcap is not None:
        keys["final_logit_softcapping"] = config.logit_softcap
    return {f"{architecture}.{key}": value for key, value in keys.items()}


def rope_tensor(config: ModelConfig) -> np.ndarray | None:
    """The tensor `rope_freqs.weight` of a Llama 3 model, by which llama.cpp divides the frequencies; None of others."""
    return llama3_factors(config.rope, config.head_dim) if config.rope.scaling == "llama3" else None


def _as_read(config: ModelConfig, architecture: str) -> dict[str, Any]:
    """What a reader of a file of `architecture` would take for `config`'s model."""
    metadata = write_metadata(config, architecture)
    fields = config.model_dump()
    fields |= {"norm": "rmsnorm", "norm_position": "pre", "norm_offset": False, "activation": "swiglu"}
    fields |= {"position": "rotary", "window": None, "window_layers": None, "local_rope": None}
    fields |= {"attention_scale": None, "attention_softcap": None, "logit_softcap": None, "embedding_scale": None}
    fields |= ARCHITECTURES[architecture]
    fields |= _read_gemma(
        metadata, architecture, config.hidden_size, config.num_heads, config.head_dim, config.num_layers
    )
    if architecture == "gpt2":
        fields |= {"query_bias": True, "output_bias": True, "feed_forward_bias": True}
        fields |= {"num_kv_heads": config.num_heads, "head_dim": config.hidden_size // config.num_heads}
    elif architecture != "llama":
        fields |= {"query_bias": architecture == "qwen2", "output_bias": False, "feed_forward_bias": False}
        fields |= {"qk_norm": architecture in ("qwen3", "gemma3")}
    if architecture == "gemma2":
        fields["tie_embeddings"] = True
    return fields


def _differences(config: ModelConfig, fields: dict[str, Any]) -> dict[str, Any]:
    """The fields in which the model of `config` differs from that of `fields`, with `config`'s values."""
    read = ModelConfig(**fields)
    wrong = {
        field: getattr(config, field)
        for field in ModelConfig.model_fields
        if field not in ("rope", "local_rope", "window", "window_layers", "attention_scale")
        and not _equal(getattr(config, field), getattr(read, field))
    }
    if not _equal(_scale(config), _scale(read)):
        wrong["attention_scale"] = _scale(config)
    for layer in range(config.num_layers):
        if _window(config, layer) != _window(read, layer):
            wrong["window"] = config.window
        if config.position == "rotary" and config.layer_rope(layer) != read.layer_rope(layer):
            wrong["local_rope" if config.layer_window(layer) else "rope"] = config.layer_rope(layer)
    return wrong


def _equal(a: Any, b: Any) -> bool:
    return math.isclose(a, b, rel_tol=1e-6) if isinstance(a, float) and isinstance(b, float) else bool(a == b)


def _scale(config: ModelConfig) -> float:
    return config.attention_scale or config.head_dim**-0.5


def _window(config: ModelConfig, layer: int) -> int | None:
    """The window of a layer, or None where it is no bound within the context."""
    window = config.layer_window(layer)
    return None if window is not None and window >= config.max_positions else window
