"""Models of which matrices lie in blocks, made and asked about."""

from __future__ import annotations

from pellucid.layers.quantised import Blocks, Quantised
from pellucid.models.decoder import Decoder
from pellucid.models.quantised import is_matrix, parse_scheme, put_blocks
from pellucid.operations.blocks import BLOCK, to_blocks


def quantise(model: Decoder, scheme: str) -> list[str]:
    """Rounds every matrix to the nearest numbers of a scheme, in place; the names of those whose rows are no blocks."""
    kept = []
    for name, weight in list(model.named_parameters()):
        if not is_matrix(name, weight):
            continue
        if weight.shape[1] % BLOCK:
            kept.append(name)
        else:
            form = parse_scheme(scheme)
            put_blocks(model, name, Blocks(to_blocks(weight.detach(), form), form), model.dtype)
    return kept


def formats_of(model: Decoder) -> set[str]:
    """The formats of those of its matrices that are blocks."""
    return {module.format for module in model.modules() if isinstance(module, Quantised)}
