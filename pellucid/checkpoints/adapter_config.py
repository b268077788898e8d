"""What an `adapter_config.json` says, as peft reads and writes it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from pellucid.checkpoints.source import ADAPTER_CONFIG
from pellucid.errors import InputError
from pellucid.layers.lora import Adapter
from pellucid.models.adapters import ALL, sites
from pellucid.models.config import ModelConfig
from pellucid.models.families import family_of

# What is read, and what says nothing of the result. Any other field must say no.
READ = {
    "peft_type", "base_model_name_or_path", "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules",
    "layers_to_transform", "alpha_pattern", "use_rslora", "use_dora", "init_lora_weights",
}  # fmt: skip
IDLE = {
    "task_type", "auto_mapping", "peft_version", "revision", "inference_mode", "fan_in_fan_out", "rank_pattern",
    "layers_pattern", "megatron_core", "qalora_group_size", "eva_config", "corda_config", "loftq_config",
    "lora_ga_config", "runtime_config", "ensure_weight_tying",
}  # fmt: skip
STARTS = (True, False, None, "gaussian", "orthogonal", "eva")  # init_lora_weights that leave the base as it is


def unsupported(fields: Mapping[str, Any]) -> str | None:
    """The first field that asks for what is not there, as "field = value"; None: there is none."""
    if fields.get("peft_type") != "LORA":
        return f"peft_type = {fields.get('peft_type')!r}"
    if fields.get("init_lora_weights", True) not in STARTS:
        return f"init_lora_weights = {fields['init_lora_weights']!r}, which changes the base,"
    for name, value in fields.items():
        if name not in READ | IDLE and value and (name, value) != ("bias", "none"):
            return f"{name} = {value!r}"
    return None


def targeted(fields: Mapping[str, Any], layer: str) -> bool:
    """Whether the config names this layer."""
    only, number = fields.get("layers_to_transform"), re.search(r"\.(\d+)\.", layer)
    if only is not None and number is not None and int(number[1]) not in ([only] if isinstance(only, int) else only):
        return False
    return named(fields.get("target_modules"), layer) and not named(fields.get("exclude_modules"), layer)


def named(targets: Any, layer: str) -> bool:
    """targets: a list of names and of how names end, or a pattern of the whole name."""
    if isinstance(targets, str):
        return targets == ALL or matches(re.fullmatch, targets, layer)
    return any(layer == target or layer.endswith(f".{target}") for target in targets or ())


def matches(how: Callable[[str, str], Any], pattern: str, layer: str) -> bool:
    """Whether a pattern of the file fits. `InputError`: it is none."""
    try:
        return how(pattern, layer) is not None
    except re.error as error:
        raise InputError(f"{ADAPTER_CONFIG}: {pattern!r} is no pattern of layers' names ({error}): mend it") from None


def alpha_of(fields: Mapping[str, Any], layer: str) -> float:
    """lora_alpha, or what `alpha_pattern` says of this layer: its keys are patterns of how a name ends."""
    for pattern, alpha in (fields.get("alpha_pattern") or {}).items():
        if matches(re.match, rf"(.*\.)?({pattern})$", layer):
            return float(alpha)
    return float(fields.get("lora_alpha", 8))


def fields_of(config: ModelConfig, adapters: Mapping[str, Adapter], base: str) -> dict[str, Any]:
    """The config of these adapters, by the names of their layers. base: the name of the model beside which they are."""
    one = next(iter(adapters.values()))
    [(rank, _)] = Counter(adapter.rank for adapter in adapters.values()).most_common(1)
    [(alpha, _)] = Counter(adapter.alpha for adapter in adapters.values()).most_common(1)
    left = {_end(site.name) for site in sites(config) if site.name not in adapters}
    targets = {layer if _end(layer) in left else _end(layer) for layer in adapters}
    family = family_of(config)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": one.dropout,
        "target_modules": sorted(targets),
        "rank_pattern": {layer: adapter.rank for layer, adapter in adapters.items() if adapter.rank != rank},
        "alpha_pattern": {layer: adapter.alpha for layer, adapter in adapters.items() if adapter.alpha != alpha},
        "use_rslora": one.rslora,
        "use_dora": one.magnitude is not None,
        "fan_in_fan_out": bool(family and family.transposed),
        "bias": "none",
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _end(layer: str) -> str:
    return layer.rpartition(".")[2]
