"""Where log-probabilities are the same to the last bit, whatever is computed beside them (promise I1).

PyTorch's matrix products add up in another order for another number of rows; each row of the native step is computed as
if it were alone.
"""

from __future__ import annotations

from pellucid.errors import InputError
from pellucid.inference.native_step import why_not_native
from pellucid.models.decoder import Decoder


def check_deterministic(model: Decoder, native: bool) -> None:
    """Raises `InputError` for a model whose results depend on what is computed beside them."""
    reason = why_not_native(model) if native else "it is switched off"
    if reason is not None:
        raise InputError(
            "deterministic needs the native step, each row of which is computed as if it were alone, and there is none "
            f"for this model: {reason}; leave deterministic out"
        )
