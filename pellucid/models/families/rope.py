"""Rotary positions in config.json: `rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling` (4)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pellucid.errors import InputError
from pellucid.layers.positions import Rope

_SCALINGS = {"default": "none", "linear": "linear", "dynamic": "dynamic", "yarn": "yarn", "llama3": "llama3"}
_KEYS = {  # theirs: ours
    "factor": "factor",
    "original_max_position_embeddings": "original_max_positions",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "attention_factor": "attention_factor",
    "truncate": "truncate",
    "low_freq_factor": "low_frequency_factor",
    "high_freq_factor": "high_frequency_factor",
}
_KEYS_OF = {  # which of them a scaling reads
    "none": (),
    "linear": ("factor",),
    "dynamic": ("factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor", "truncate"),
    "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
}


def read_rope(config: Mapping[str, Any], default_theta: float = 10000.0) -> Rope:
    """The Rope of a config.json in either spelling, or in both where they agree."""
    new, old = config.get("rope_parameters"), config.get("rope_scaling")
    theta, limit = config.get("rope_theta", default_theta), config["max_position_embeddings"]
    rope = rope_from(new or old or {}, theta, limit)
    if new and old and rope_from({"rope_theta": rope.theta, **old}, theta, limit) != rope:
        raise InputError("config.json: rope_parameters and rope_scaling disagree: leave one of them out")
    return rope


def rope_from(parameters: Mapping[str, Any], theta: float, max_positions: int) -> Rope:
    """The Rope that one dictionary of parameters describes. `theta` holds where it names none."""
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind not in _SCALINGS:
        raise InputError(f"config.json: rope type {kind!r} is not supported, only {', '.join(map(repr, _SCALINGS))}")
    only_whole = parameters.get("partial_rotary_factor", 1.0)
    if only_whole != 1.0:
        raise InputError(f"config.json: partial_rotary_factor = {only_whole} is not supported, only 1.0")
    scaling = _SCALINGS[kind]
    read = {k: parameters[k] for k in _KEYS_OF[scaling] if parameters.get(k) is not None}
    if "original_max_position_embeddings" in _KEYS_OF[scaling]:
        read.setdefault("original_max_position_embeddings", max_positions)
    if scaling == "yarn":
        read.setdefault("factor", max_positions / read["original_max_position_embeddings"])
        mscale, mscale_all = parameters.get("mscale"), parameters.get("mscale_all_dim")
        if mscale and mscale_all and "attention_factor" not in read:  # DeepSeek's spelling of the temperature
            log = 0.1 * math.log(read["factor"])
            read["attention_factor"] = (log * mscale + 1) / (log * mscale_all + 1)
    return Rope(
        theta=parameters.get("rope_theta", theta), scaling=scaling, **{_KEYS[key]: value for key, value in read.items()}
    )


def write_rope(rope: Rope) -> dict[str, Any]:
    """Both spellings: transformers 5 reads the first, transformers 4 and vLLM the others."""
    parameters = rope_parameters(rope)
    scaling = {key: value for key, value in parameters.items() if key != "rope_theta"}
    return {
        "rope_parameters": parameters,
        "rope_theta": rope.theta,
        "rope_scaling": None if rope.scaling == "none" else scaling,
    }


def rope_parameters(rope: Rope) -> dict[str, Any]:
    """One Rope as transformers 5 writes it."""
    kind = next(theirs for theirs, ours in _SCALINGS.items() if ours == rope.scaling)
    values = {key: getattr(rope, _KEYS[key]) for key in _KEYS_OF[rope.scaling]}
    return {"rope_type": kind, "rope_theta": rope.theta} | {k: v for k, v in values.items() if v is not None}
