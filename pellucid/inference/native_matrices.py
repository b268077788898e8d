"""What the native step multiplies with: the matrices of a model, and the small ones of an adapter beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pellucid.layers.lora import LoRALinear
from pellucid.layers.quantised import Quantised
from pellucid.operations.step import BLOCKS, TYPES


def wide(parameter: Tensor) -> Tensor:
    return parameter.detach().float().contiguous()


class Matrix(NamedTuple):
    """What a linear layer or an embedding reads. type: a number of `operations.step`. bias: float32."""

    weight: Tensor  # (outputs, inputs), or (outputs, bytes of a row) in blocks
    type: int
    inputs: int
    bias: Tensor | None

    @classmethod
    def of(cls, module: nn.Module) -> Matrix:
        bias = getattr(module, "bias", None)
        if isinstance(module, Quantised):
            weight, inputs = module.blocks, module.in_features
        else:
            assert isinstance(module, nn.Linear | nn.Embedding), "this layer has been packed already"
            weight, inputs = module.weight.detach(), module.weight.shape[1]
        return cls(weight, type_of(module), inputs, None if bias is None else wide(bias))

    @classmethod
    def plain(cls, weight: Tensor) -> Matrix:
        return cls(weight.contiguous(), TYPES[weight.dtype], weight.shape[1], None)


def type_of(module: nn.Module) -> int:
    """The number of what a layer's weights are, in `operations.step`."""
    if isinstance(module, Quantised):
        return BLOCKS[module.format]
    assert isinstance(module, nn.Linear | nn.Embedding), "this layer has been packed already"
    return TYPES[module.weight.dtype]


def fused(linears: Sequence[nn.Module]) -> Matrix:
    """Layers that read the same input as one matrix; their own weights become parts of it."""
    parts = [Matrix.of(linear) for linear in linears]
    together = as_one([part.weight for part in parts])
    if together is None:
        together = torch.cat([part.weight for part in parts])
        for linear, rows in zip(linears, together.split([len(part.weight) for part in parts]), strict=True):
            if isinstance(linear, Quantised):
                linear.blocks = rows
            else:
                linear.weight = nn.Parameter(rows, requires_grad=False)
    biases = [part.bias for part in parts if part.bias is not None]
    return parts[0]._replace(weight=together, bias=torch.cat(biases) if biases else None)


def as_one(parts: Sequence[Tensor]) -> Tensor | None:
    """Matrices that lie one behind the other in one piece of memory, as an earlier engine has laid them, as one matrix;
    None where they do not."""
    first, columns = parts[0], parts[0].shape[1]
    storage, at = first.untyped_storage().data_ptr(), first.storage_offset()
    for part in parts:
        if (part.untyped_storage().data_ptr(), part.storage_offset(), part.shape[1]) != (storage, at, columns):
            return None
        if not part.is_contiguous():
            return None
        at += part.numel()
    return first.as_strided((sum(map(len, parts)), columns), (columns, 1))


class Change(NamedTuple):
    """What an adapter makes of a layer: y = c W x + c s B (A x), c being 1 without DoRA.

    down: A, (r, in); up: B transposed, (r, out); scale: c s, (out,); factors: c, or None. All are float32.
    """

    down: Tensor
    up: Tensor
    scale: Tensor
    factors: Tensor | None


def base_of(module: nn.Module) -> nn.Linear | Quantised:
    """The layer itself, without adapters."""
    base = module.base if isinstance(module, LoRALinear) else module
    assert isinstance(base, nn.Linear | Quantised)
    return base


def change_of(module: nn.Module, name: str | None) -> Change | None:
    """What the adapter called `name` does to a layer; None: nothing."""
    if name is None or not isinstance(module, LoRALinear) or name not in module.adapters:
        return None
    adapter = module.adapter(name)
    down, up = wide(adapter.down), wide(adapter.up.T)
    scale, factors = torch.full((up.shape[1],), adapter.scale), None
    if adapter.magnitude is not None:
        factors = (adapter.magnitude.detach().float() / module.row_norms(adapter)).contiguous()
        scale = scale * factors
    return Change(down, up, scale, factors)


def factors_of(changes: Sequence[Change | None], outputs: Sequence[int]) -> Tensor | None:
    """Of layers side by side, of so many outputs each; None where no adapter scales any."""
    if all(change is None or change.factors is None for change in changes):
        return None
    each = [
        torch.ones(count) if change is None or change.factors is None else change.factors
        for change, count in zip(changes, outputs, strict=True)
    ]
    return torch.cat(each)
