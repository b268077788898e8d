"""The position-wise feed-forward layer, plain and gated."""

from __future__ import annotations

from torch import Tensor, nn

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

    def forward(self, x: Tensor) -> Tensor:
        if self.gate is None:
            return self.down(self.activation(self.up(x)))
        return self.down(self.activation(self.gate(x)) * self.up(x))
