"""Rotary positions in GGUF: the keys `rope.*`, and Llama 3's rule, which GGUF holds as a tensor of factors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.checkpoints.gguf_read import GGUF
from pellucid.errors import InputError
from pellucid.layers.positions import Rope

LLAMA3 = {"low_frequency_factor": 1.0, "high_frequency_factor": 4.0, "original_max_positions": 8192}  # of every release


def exact(value: float) -> float:
    """The shortest decimal that is this float32: what was written as 1e-05 reads as 1e-05, not 9.999999747e-06."""
    return float(str(np.float32(value)))


def read_rope(file: GGUF, architecture: str, head_dim: int) -> Rope:
    """The `Rope` of a GGUF file."""

    def key(name: str, otherwise: Any = None) -> Any:
        value = file.metadata.get(f"{architecture}.rope.{name}", otherwise)
        return exact(value) if isinstance(value, float) else value

    if key("dimension_count", head_dim) != head_dim:
        raise InputError(f"{file.path}: rotary positions on {key('dimension_count')} of {head_dim} are not supported")
    theta, kind = key("freq_base", 10000.0), key("scaling.type", "linear")  # llama.cpp takes linear for granted
    factor = key("scaling.factor", key("scale_linear", 0.0)) or 1.0
    if "rope_freqs.weight" in file.tensors:
        factors = file.tensor("rope_freqs.weight").numpy()
        if factors.shape != (head_dim // 2,):
            raise InputError(f"{file.path}: 'rope_freqs.weight' has the shape {factors.shape}, not ({head_dim // 2},)")
        return _read_llama3(file, theta, head_dim, factors, key("scaling.original_context_length"))
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return Rope(theta=theta)
    if kind == "linear":
        return Rope(theta=theta, scaling="linear", factor=factor)
    if kind == "yarn":
        return Rope(
            theta=theta,
            scaling="yarn",
            factor=factor,
            original_max_positions=key("scaling.original_context_length"),
            beta_fast=key("scaling.yarn_beta_fast", 32.0),
            beta_slow=key("scaling.yarn_beta_slow", 1.0),
            attention_factor=key("scaling.yarn_attn_factor"),
        )
    raise InputError(f"{file.path}: {architecture}.rope.scaling.type = {kind!r}: none, linear and yarn are read")


def write_rope(rope: Rope) -> dict[str, Any]:
    """The keys, without the architecture before them, for `rope`. Raises `InputError` for what GGUF cannot say."""
    keys: dict[str, Any] = {"rope.freq_base": rope.theta}
    if rope.scaling == "dynamic" or (rope.scaling == "yarn" and not rope.truncate):
        rule = "dynamic" if rope.scaling == "dynamic" else "yarn without truncation"
        raise InputError(f"rope.scaling = {rule!r} cannot be said in GGUF; use linear, yarn or llama3 scaling")
    if rope.scaling in ("linear", "yarn"):
        keys |= {"rope.scaling.type": rope.scaling, "rope.scaling.factor": rope.factor}
    if rope.original_max_positions is not None:
        keys["rope.scaling.original_context_length"] = rope.original_max_positions
    if rope.scaling == "yarn":
        keys |= {"rope.scaling.yarn_beta_fast": rope.beta_fast, "rope.scaling.yarn_beta_slow": rope.beta_slow}
        if rope.attention_factor is not None:
            # llama.cpp multiplies the published default by `attn_factor`; others take `yarn_attn_factor` as it is.
            keys["rope.scaling.yarn_attn_factor"] = rope.attention_factor
            keys["rope.scaling.attn_factor"] = rope.attention_factor / (1.0 + 0.1 * math.log(rope.factor))
    return keys


def llama3_factors(rope: Rope, head_dim: int) -> NDArray[np.float32]:
    """By what each frequency is divided: 1 for short wavelengths, `factor` for long ones, in between smoothly. (D/2,)

    Llama 3.1 (Meta 2024): with the wavelength w = 2 pi / f of a frequency f and the trained context L,
    smooth = (L / w - low) / (high - low), between 0 and 1, and the divisor is 1 / ((1 - smooth) / factor + smooth).
    """
    turns = _turns(rope.theta, head_dim) * (rope.original_max_positions or 0)  # L / w
    low, high = rope.low_frequency_factor, rope.high_frequency_factor
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1.0 / ((1.0 - smooth) / rope.factor + smooth)).astype(np.float32)


def _turns(theta: float, head_dim: int) -> NDArray[np.float64]:
    """1 / w: how often each frequency turns in one position. (D/2,)"""
    frequencies: NDArray[np.float64] = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    return frequencies / (2 * math.pi)


def _read_llama3(file: GGUF, theta: float, head_dim: int, factors: NDArray[np.float32], original: int | None) -> Rope:
    """The rule behind the factors: the published numbers where they fit, else those that the factors give away."""
    factor = exact(float(factors.max()))
    published = LLAMA3 | ({"original_max_positions": original} if original else {})
    candidates = [published]
    between = (factors > 1.0001) & (factors < factor * 0.9999)
    if (
        between.sum() >= 2
    ):  # smooth = turns x L / (high - low) - low / (high - low) is a line: take low = 1, find the rest
        smooth = (1.0 / factors[between].astype(np.float64) - 1.0 / factor) / (1.0 - 1.0 / factor)
        slope, intercept = np.polyfit(_turns(theta, head_dim)[between], smooth, 1)
        span = -1.0 / intercept
        fitted = {"low_frequency_factor": 1.0, "high_frequency_factor": exact(round(1.0 + span, 4))}
        candidates.append(fitted | {"original_max_positions": round(slope * span)})
    for candidate in candidates:
        rope = Rope.model_validate({"theta": theta, "scaling": "llama3", "factor": factor} | candidate)
        if np.allclose(llama3_factors(rope, head_dim), factors, rtol=1e-4):
            return rope
    raise InputError(f"{file.path}: the factors in 'rope_freqs.weight' do not follow Llama 3's rule")
