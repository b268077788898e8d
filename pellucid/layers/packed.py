"""Linear layers ready for inference: their weights packed as the processor's kernel reads them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pellucid.operations.linear import fast_linear


class PackedLinear(nn.Module):
    """An `nn.Linear` for inference on the CPU. It holds nothing to train or save."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        super().__init__()
        self.linear = fast_linear(weight, bias)

    @classmethod
    def of(cls, linear: nn.Module) -> PackedLinear:
        return cls(*parameters_of(linear))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class PackedParts(nn.Module):
    """Linear layers that read the same input, as one product: (..., in) -> one (..., out) for each of them."""

    def __init__(self, linears: Sequence[nn.Module]):
        super().__init__()
        weights, biases = zip(*map(parameters_of, linears), strict=True)
        self.sizes = [len(weight) for weight in weights]
        self.together = PackedLinear(torch.cat(weights), None if biases[0] is None else torch.cat(biases))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.together(x).split(self.sizes, dim=-1)


def parameters_of(linear: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of an `nn.Linear`."""
    assert isinstance(linear, nn.Linear), "this layer has been packed already"
    return linear.weight, linear.bias
