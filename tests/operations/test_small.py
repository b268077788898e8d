"""Norms, rotary and activations against the formulas and against torch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pellucid.operations.gated import ACTIVATIONS
from pellucid.operations.norm import layer_norm, rms_norm
from pellucid.operations.rotary import rotary, rotation_tables


def test_rms_norm_is_torch_s() -> None:
    x, weight = torch.randn(3, 5, 16), torch.randn(16)
    module = nn.RMSNorm(16, eps=1e-3)
    module.weight = nn.Parameter(weight)
    torch.testing.assert_close(rms_norm(x, weight, 1e-3), module(x))


def test_rms_norm_of_half_precision_is_computed_in_float32() -> None:
    """1e-4 squared is below bfloat16's reach beside a large mean; and 300 squared overflows float16."""
    x = torch.full((1, 8), 300.0, dtype=torch.float16)
    assert torch.equal(rms_norm(x, torch.ones(8, dtype=torch.float16), 1e-5), torch.ones(1, 8, dtype=torch.float16))


def test_layer_norm_is_torch_s() -> None:
    x, weight, bias = torch.randn(3, 5, 16), torch.randn(16), torch.randn(16)
    module = nn.LayerNorm(16, eps=1e-3)
    module.weight, module.bias = nn.Parameter(weight), nn.Parameter(bias)
    torch.testing.assert_close(layer_norm(x, weight, bias, 1e-3), module(x))


def test_rotary_turns_pairs() -> None:
    """Entry i and entry i + D/2 as one complex number, turned by the angle."""
    x = torch.randn(2, 7, 3, 8, dtype=torch.float64)
    angles = torch.rand(2, 7, 1, 4, dtype=torch.float64) * 6
    turned = torch.complex(x[..., :4], x[..., 4:]) * torch.polar(torch.ones_like(angles), angles)
    torch.testing.assert_close(rotary(x, *rotation_tables(angles)), torch.cat((turned.real, turned.imag), -1))


def test_rotary_depends_on_distance_alone() -> None:
    query, key = torch.randn(2, 1, 1, 1, 16, dtype=torch.float64).unbind()
    frequencies = torch.tensor([10000 ** (-i / 8) for i in range(8)], dtype=torch.float64)

    def product(i: int, j: int) -> float:
        at_i, at_j = rotation_tables(i * frequencies), rotation_tables(j * frequencies)
        return float((rotary(query, *at_i) * rotary(key, *at_j)).sum())

    assert math.isclose(product(3, 10), product(1003, 1010), abs_tol=1e-9)
    assert not math.isclose(product(3, 10), product(3, 11), abs_tol=1e-3)


@pytest.mark.parametrize(
    ("name", "module", "gated"),
    [
        ("relu", nn.ReLU(), False),
        ("gelu", nn.GELU(), False),
        ("gelu_tanh", nn.GELU(approximate="tanh"), False),
        ("swiglu", nn.SiLU(), True),
        ("geglu", nn.GELU(), True),
        ("geglu_tanh", nn.GELU(approximate="tanh"), True),
    ],
)
def test_activations(name: str, module: nn.Module, gated: bool) -> None:
    x = torch.linspace(-4, 4, 33)
    function, is_gated = ACTIVATIONS[name]
    torch.testing.assert_close(function(x), module(x))
    assert is_gated == gated
