"""Linear layers ready for inference: their weights packed as the processor's kernel reads them."""

from __future__ import annotations

from torch import Tensor, nn

from pellucid.operations.linear import pack, packed_linear, why_not_packable


class PackedLinear(nn.Module):
    """An `nn.Linear` for inference on the CPU, under the same name in the model. It holds nothing to train or save."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        super().__init__()
        self.packed = pack(weight)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        return packed_linear(x, self.packed, self.bias)


def pack_linears(model: nn.Module) -> str | None:
    """Replace every `nn.Linear` inside `model` by its packed form, one at a time, so that memory does not double.

    The names of submodules and what they compute stay as they are; the model can no longer be trained or saved.
    Returns why it was not done, in a few words, or None when it was.
    """
    for parent in model.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear):
                reason = why_not_packable(child.weight)
                if reason is not None:
                    return reason
                setattr(parent, name, PackedLinear(child.weight, child.bias))
    return None
