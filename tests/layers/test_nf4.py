"""NF4: the paper's levels, its error, torchao's codes, and products through which gradients pass."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torchao.quantization import NF4Tensor

from pellucid.layers.nf4 import BLOCK, GROUP, LEVELS, NF4, NF4Linear, from_nf4, to_nf4

pytestmark = pytest.mark.usefixtures("one_thread")


def test_levels_are_the_papers_quantiles() -> None:
    """Appendix E: 9 quantiles of the upper half and 8 of the lower, evenly spaced between 1/2 and the outermost, the
    two zeros made one, all divided by the largest."""
    outermost = 0.9677083
    upper = torch.special.ndtri(torch.linspace(outermost, 0.5, 9, dtype=torch.float64))
    lower = -torch.special.ndtri(torch.linspace(outermost, 0.5, 8, dtype=torch.float64))
    levels = torch.cat([upper[:-1], lower]).sort().values
    torch.testing.assert_close(levels / levels.max(), torch.tensor(LEVELS, dtype=torch.float64), rtol=0, atol=2e-7)


@given(st.integers(1, 40), st.integers(1, 200), st.integers(0, 2**32 - 1), st.floats(1e-6, 1e6))
def test_no_weight_is_farther_off_than_half_a_gap(rows: int, columns: int, seed: int, size: float) -> None:
    """Half of the widest gap between levels, in units of the block's scale, and half a step of that scale."""
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * size
    matrix = to_nf4(weight)
    flat = weight.flatten()
    blocks = torch.nn.functional.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
    largest = blocks.abs().amax(1)
    widest = float(torch.tensor(LEVELS).diff().max())
    step = matrix.widths.repeat_interleave(GROUP)[: len(largest)]
    bound = (widest / 2 * largest + step / 2 + 1e-5 * largest.max()).repeat_interleave(BLOCK)[: len(flat)]
    assert bool(((from_nf4(matrix).flatten() - flat).abs() <= bound).all())


def test_zeros_stay_zeros_and_a_bit_more_than_four_bits_are_taken() -> None:
    weight = torch.randn(256, 512)
    weight[3] = 0
    matrix = to_nf4(weight)
    assert bool((from_nf4(matrix)[3] == 0).all())
    held = sum(part.nbytes for part in matrix[1:] if isinstance(part, torch.Tensor))
    assert held * 8 / weight.numel() == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), abs=1e-3)
    assert bool((from_nf4(to_nf4(torch.zeros(2, 64))) == 0).all())


def test_it_chooses_torchaos_codes() -> None:
    """Theirs are the levels to four digits, so a weight within 1e-4 of the middle between two may get the other one."""
    weight = torch.randn(256, 512) * 0.02
    ours, theirs = to_nf4(weight), NF4Tensor.from_tensor(weight, BLOCK, GROUP)
    share = weight.view(-1, BLOCK) / weight.view(-1, BLOCK).abs().amax(1, keepdim=True)
    levels = torch.tensor(LEVELS)
    middle = (share.flatten()[:, None] - (levels[1:] + levels[:-1]) / 2).abs().amin(1) < 1e-4
    differ = torch.stack([ours.codes >> 4 != theirs.quantized_data >> 4, ours.codes % 16 != theirs.quantized_data % 16])
    assert not bool((differ.T.flatten() & ~middle).any())
    # Their scales have steps of 1/128, ours of 1/127, and each is rounded to the nearest, theirs clipped at 127.
    step = ours.widths.repeat_interleave(GROUP * BLOCK) * 2
    apart = (from_nf4(ours) - theirs.get_original_weight()).abs().flatten()
    assert bool((apart <= step + 1e-4 * weight.abs().max())[~middle].all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_and_gradients_are_those_of_the_widened_matrix(dtype: torch.dtype) -> None:
    weight, bias = torch.randn(24, 40), nn.Parameter(torch.randn(24, dtype=dtype))
    layer = NF4Linear(to_nf4(weight), bias)
    x = torch.randn(5, 40, dtype=dtype, requires_grad=True)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = layer(x)
    assert not kept  # the widened matrix is not held until the gradient comes
    plain = x.detach().requires_grad_()
    expected = nn.functional.linear(plain, from_nf4(layer.matrix, dtype)) + bias
    assert torch.equal(y, expected)
    pull = torch.randn_like(y)
    y.backward(pull)
    expected.backward(pull)
    assert torch.equal(x.grad, plain.grad)


def test_autocast_decides_the_type_of_products() -> None:
    layer = NF4Linear(to_nf4(torch.randn(8, 64)))
    x = torch.randn(3, 64, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16 and x.grad.dtype == torch.float32


def test_a_cast_leaves_the_matrix_what_it_is() -> None:
    layer = NF4Linear(to_nf4(torch.randn(8, 64)))
    before = layer.widened(torch.float32)
    assert torch.equal(layer.to(torch.bfloat16).widened(torch.float32), before)
    assert set(layer.state_dict()) == set(NF4._fields[1:])
