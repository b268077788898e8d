"""pellucid: a language model built, aligned, served and looked into, on one machine.

    model, tokenizer = pellucid.load("smollm2")

Importing it is instant: what needs PyTorch is imported when it is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pellucid.errors import InputError, PellucidError

if TYPE_CHECKING:
    from pellucid.checkpoints.load import load
    from pellucid.inference.llm import LLM
    from pellucid.inference.params import SamplingParams

__all__ = ["LLM", "InputError", "PellucidError", "SamplingParams", "__version__", "load"]

HOMES = {
    "load": "pellucid.checkpoints.load",
    "LLM": "pellucid.inference.llm",
    "SamplingParams": "pellucid.inference.params",
}


def __getattr__(name: str) -> Any:
    """PEP 562: imports what is heavy at first use."""
    if name == "__version__":
        from importlib.metadata import version

        return version("pellucid")
    if name in HOMES:
        return getattr(import_module(HOMES[name]), name)
    raise AttributeError(f"module 'pellucid' has no attribute {name!r}")
