"""The position-wise feed-forward layer, plain and gated."""

from __future__ import annotations

from torch import Tensor, nn

from pellucid.layers.packed import PackedLinear, PackedParts
from pellucid.operations.gated import ACTIVATIONS


class FeedForward(nn.Module):
    """down(act(up(x))) (Vaswani et al. 2017, eq. 2), or down(act(gate(x)) * up(x)) (Shazeer 2020) when gated.

    activation: a name of `operations.gated.ACTIVATIONS`. x: (B, T, E) -> (B, T, E).
    """

    def __init__(self, hidden_size: int, intermediate_size: int, activation: str, bias: bool = False):
        super().__init__()
        self.activation, gated = ACTIVATIONS[activation]
        self.gate: nn.Module | None = nn.Linear(hidden_size, intermediate_size, bias=bias) if gated else None
        self.up: nn.Module = nn.Linear(hidden_size, intermediate_size, bias=bias)
        self.down: nn.Module = nn.Linear(intermediate_size, hidden_size, bias=bias)
        self.parts: PackedParts | None = None  # gate and up in one product, once packed

    def pack(self) -> None:
        """Ready for inference: one product for gate and up, which are still seen under their names."""
        if self.gate is None:
            self.up = PackedLinear.of(self.up)
        else:
            self.parts = PackedParts([self.gate, self.up])
            self.gate, self.up = nn.Identity(), nn.Identity()
        self.down = PackedLinear.of(self.down)

    def forward(self, x: Tensor) -> Tensor:
        if self.gate is None:
            return self.down(self.activation(self.up(x)))
        into_gate, into_up = (x, x) if self.parts is None else self.parts(x)
        return self.down(self.activation(self.gate(into_gate)) * self.up(into_up))
