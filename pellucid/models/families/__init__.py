"""Published families: each a reader and writer of `config.json` and a table of weight names, one file a family."""

from __future__ import annotations

from pellucid.errors import InputError, did_you_mean
from pellucid.models.config import ModelConfig
from pellucid.models.families.family import CLASSIFIER, Family, parameter_shapes
from pellucid.models.families.gemma import GEMMA2, GEMMA3
from pellucid.models.families.gpt2 import GPT2
from pellucid.models.families.llama import LLAMA
from pellucid.models.families.mistral import MISTRAL
from pellucid.models.families.qwen import QWEN2, QWEN3

__all__ = ["CLASSIFIER", "FAMILIES", "Family", "family_for", "family_of", "parameter_shapes"]

FAMILIES = {family.model_type: family for family in (LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA2, GEMMA3, GPT2)}


def family_for(model_type: str) -> Family:
    """The family that config.json's `model_type` names. InputError: it is not known here."""
    if model_type not in FAMILIES:
        raise InputError(
            f"the model type {model_type!r} is not known{did_you_mean(model_type, FAMILIES)}: "
            f"there are {', '.join(FAMILIES)}"
        )
    return FAMILIES[model_type]


def family_of(config: ModelConfig, prefer: str | None = None) -> Family | None:
    """A family whose config.json says all that `config` says, `prefer` if that is one; None: no published one does."""
    ordered = sorted(FAMILIES.values(), key=lambda family: family.model_type != prefer)
    return next((family for family in ordered if family.expresses(config)), None)
