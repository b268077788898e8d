"""Decoders whose matrices lie in few bits."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn

from pellucid.errors import InputError, did_you_mean
from pellucid.layers.nf4 import NF4, NF4Linear
from pellucid.layers.quantised import Blocks, Quantised, QuantisedEmbedding, QuantisedLinear
from pellucid.models.decoder import Decoder
from pellucid.operations.blocks import BYTES

# What a user asks for -> the format of `operations.blocks`.
SCHEMES = {"int8": "Q8_0", "int4": "Q4_1"} | {name.lower(): name for name in BYTES}


def parse_scheme(name: str) -> str:
    """The format of a scheme. Raises `InputError` that names the schemes."""
    if name.lower() not in SCHEMES:
        near = did_you_mean(name.lower(), SCHEMES)
        raise InputError(f"there is no quantisation {name!r}: it must be one of {', '.join(SCHEMES)}{near}")
    return SCHEMES[name.lower()]


def is_matrix(name: str, weight: Tensor) -> bool:
    """Whether a parameter is one that products are made with. Learned positions are added, and stay as they are."""
    return weight.dim() == 2 and not name.startswith("positions.")


def put_blocks(model: Decoder, name: str, blocks: Blocks, dtype: torch.dtype) -> None:
    """Makes a matrix out of blocks of the parameter called `name`. dtype: the type that the model computes in."""
    layer = model.get_submodule(name.removesuffix(".weight"))
    assert isinstance(layer, nn.Linear | nn.Embedding)
    new = QuantisedEmbedding(blocks, dtype) if isinstance(layer, nn.Embedding) else QuantisedLinear(blocks, layer.bias)
    put_layer(model, name.removesuffix(".weight"), new)


def in_nf4(name: str, weight: Tensor) -> bool:
    """Whether a parameter is one that QLoRA keeps in NF4: the matrices of the blocks, embeddings and head not."""
    return weight.dim() == 2 and name.startswith("blocks.")


def put_nf4(model: Decoder, name: str, matrix: NF4) -> None:
    """Makes a matrix in NF4 of the parameter called `name`."""
    path = name.removesuffix(".weight")
    layer = model.get_submodule(path)
    assert isinstance(layer, nn.Linear)
    put_layer(model, path, NF4Linear(matrix, layer.bias))


def put_layer(model: Decoder, path: str, new: nn.Module) -> None:
    """Puts a layer in the place of the one at `path`."""
    parent, _, child = path.rpartition(".")
    setattr(model.get_submodule(parent), child, new.train(model.training))


def weight_bytes(model: Decoder) -> dict[str, int]:
    """Format or type -> bytes of weights that are held in it, the largest first."""
    sizes: Counter[str] = Counter()
    for module in model.modules():
        if isinstance(module, Quantised):
            sizes[module.format] += module.blocks.nbytes
            if module.packed is not None:  # a second copy
                sizes[f"{module.format} packed for PyTorch's kernel"] += module.packed.nbytes
        elif isinstance(module, NF4Linear):
            sizes["NF4"] += sum(buffer.nbytes for buffer in module.buffers())
    for parameter in model.parameters():
        sizes[str(parameter.dtype).removeprefix("torch.")] += parameter.nbytes
    return dict(sizes.most_common())
