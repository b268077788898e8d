"""LoRA and DoRA: a linear layer whose weights stay, with small changes beside them that are trained.

r rank, in and out features of the layer.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pellucid.layers.nf4 import NF4Linear
from pellucid.layers.quantised import QuantisedLinear
from pellucid.operations.frozen import frozen_product

Linear = nn.Linear | QuantisedLinear | NF4Linear  # what an adapter can stand beside


class Adapter(nn.Module):
    """A change of rank r of a linear layer. Parameters: down A (r, in), up B (out, r), with DoRA magnitude m (out,).

    rslora: the scale is alpha / sqrt(r), which keeps the change of one size at any rank (Kalajdzievski 2023, eq. 4),
    instead of alpha / r. dropout: of what A reads, in training.
    """

    def __init__(
        self,
        down: nn.Parameter,
        up: nn.Parameter,
        alpha: float,
        *,
        rslora: bool = False,
        dropout: float = 0.0,
        magnitude: nn.Parameter | None = None,
    ):
        super().__init__()
        self.down, self.up, self.magnitude = down, up, magnitude
        self.alpha, self.rslora, self.dropout = alpha, rslora, dropout

    @property
    def rank(self) -> int:
        return len(self.down)

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in) -> s B A x, (..., out), in the adapter's type."""
        if self.dropout and self.training:
            x = F.dropout(x, self.dropout)
        x = x.to(self.down.dtype)
        return F.linear(F.linear(x, self.down), self.up) * self.scale

    def extra_repr(self) -> str:
        kind = "DoRA" if self.magnitude is not None else "LoRA"
        return f"{kind}, rank {self.rank}, scale {self.scale:g}, dropout {self.dropout:g}"


class LoRALinear(nn.Module):
    """A linear layer with adapters, of which one or none is active.

        LoRA (Hu et al. 2021, eq. 3)     h = W x + s B A x
        DoRA (Liu et al. 2024, eq. 5)    h = m / ||W + s B A|| (W x + s B A x), the norm of each row

    A bias is added once, after all of it. `base` is the layer itself, whose weights are not touched.
    """

    def __init__(self, base: nn.Module):
        super().__init__()
        assert isinstance(base, Linear)
        self.base = base
        self.adapters = nn.ModuleDict()
        self.active: str | None = None

    def adapter(self, name: str) -> Adapter:
        """The adapter called `name`, which is there."""
        found = self.adapters[name]
        assert isinstance(found, Adapter)
        return found

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        if self.active is None:
            y: Tensor = self.base(x)
            return y
        adapter, bias = self.adapter(self.active), self.base.bias
        plain = self._product(x)
        y = plain + adapter(x).to(plain.dtype)
        if adapter.magnitude is not None:
            y = (adapter.magnitude / self.row_norms(adapter)).to(y.dtype) * y
        return y if bias is None else y + bias.to(y.dtype)

    def _product(self, x: Tensor) -> Tensor:
        """W x, without the bias."""
        base = self.base
        if isinstance(base, QuantisedLinear):
            return base.product(x)
        if isinstance(base, NF4Linear):
            return frozen_product(x, base.widened)
        assert isinstance(base, nn.Linear)
        if torch.compiler.is_compiling() or (base.weight.requires_grad and torch.is_grad_enabled()):
            return F.linear(x, base.weight)
        return frozen_product(x, base.weight.detach().to)

    @torch.no_grad()
    def row_norms(self, adapter: Adapter) -> Tensor:
        """||W + s B A|| of each row, (out,), float32. No gradient goes through it (Liu et al. 2024, section 4.3)."""
        with torch.autocast(adapter.down.device.type, enabled=False):
            weight, down, up = widened(self.base).float(), adapter.down.float(), adapter.up.float() * adapter.scale
            # ||w + b A||^2 = ||w||^2 + (2 w A^T + b A A^T) . b, so that B A is never made
            squares = weight.square().sum(1) + ((2 * (weight @ down.T) + up @ (down @ down.T)) * up).sum(1)
            return squares.clamp_min(0).sqrt()

    @torch.no_grad()
    def merged_weight(self, name: str) -> Tensor:
        """The one matrix (out, in) that computes what the layer does with this adapter, float32."""
        adapter = self.adapter(name)
        weight = widened(self.base).float() + delta(adapter)
        if adapter.magnitude is None:
            return weight
        return weight * (adapter.magnitude.float() / weight.norm(dim=1))[:, None]


def delta(adapter: Adapter) -> Tensor:
    """s B A, (out, in), float32."""
    return adapter.up.float() @ adapter.down.float() * adapter.scale


def widened(base: nn.Module) -> Tensor:
    """The matrix (out, in) of a linear layer, whatever it is stored as; float32 where it is stored in few bits."""
    assert isinstance(base, Linear)
    return base.weight.detach() if isinstance(base, nn.Linear) else base.widened(torch.float32)
