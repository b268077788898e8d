"""pellucid: a language model built, aligned, served and looked into, on one machine.

    model, tokenizer = pellucid.load("smollm2")

Importing it is instant: what needs PyTorch is imported when it is first asked for.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from pellucid.errors import InputError, PellucidError

if TYPE_CHECKING:
    from pellucid.checkpoints.load import load

__all__ = ["InputError", "PellucidError", "__version__", "load"]
__version__ = version("pellucid")


def __getattr__(name: str) -> Any:
    """PEP 562: imports what is heavy at first use."""
    if name == "load":
        from pellucid.checkpoints.load import load

        return load
    raise AttributeError(f"module 'pellucid' has no attribute {name!r}")
