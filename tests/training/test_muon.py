"""Muon: the iteration against the singular values, the optimizer against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pellucid.training import muon
from pellucid.training.muon import COEFFICIENTS, ITERATIONS, Muon, of_one_shape, orthogonal

SHAPES = [(8, 8), (6, 10), (10, 6), (8, 8), (6, 10), (1, 5), (5, 1)]


def matrices(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


@pytest.mark.parametrize("shape", [(3, 7, 7), (2, 5, 12), (2, 12, 5)])
def test_the_iteration_moves_the_singular_values_only(shape: tuple[int, int, int]) -> None:
    """U and V stay; each singular value goes through the polynomial, five times."""
    given = torch.randn(shape)
    u, s, vt = torch.linalg.svd(given.double(), full_matrices=False)
    s = s / s.norm(dim=-1, keepdim=True)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        s = a * s + b * s**3 + c * s**5
    torch.testing.assert_close(orthogonal(given).double(), u @ torch.diag_embed(s) @ vt, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_comes_out_is_nearly_orthogonal(dtype: torch.dtype) -> None:
    singular = torch.linalg.svdvals(orthogonal(torch.randn(4, 32, 64).to(dtype)).float())
    assert singular.min() > 0.6 and singular.max() < 1.25


def test_no_gradient_is_no_direction() -> None:
    assert torch.equal(orthogonal(torch.zeros(2, 3, 4)), torch.zeros(2, 3, 4))


@pytest.mark.parametrize("together", [1, 100, 2**20])  # entries multiplied at a time: one matrix, one or two, all
def test_torchs_own_in_bfloat16_and_in_float32(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten steps with changing gradients and rates. torch's always rounds to bfloat16: for float32 that is undone."""
    monkeypatch.setattr(muon, "TOGETHER", together)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        ours, theirs = ([torch.nn.Parameter(matrix) for matrix in matrices()] for _ in range(2))
        mine = Muon(ours, lr=0.02, momentum=0.9, weight_decay=0.1, dtype=dtype)
        reference = torch.optim.Muon(theirs, lr=0.02, momentum=0.9, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
        with monkeypatch.context() as patch:
            if dtype == torch.float32:
                patch.setattr(Tensor, "bfloat16", Tensor.clone)
            for step in range(10):
                for parameters, optimizer in ((ours, mine), (theirs, reference)):
                    for parameter, gradient in zip(parameters, matrices(step + 1), strict=True):
                        parameter.grad = gradient
                    optimizer.param_groups[0]["lr"] = 0.02 / (step + 1)
                    optimizer.step()
        for parameter, expected in zip(ours, theirs, strict=True):
            torch.testing.assert_close(parameter, expected, atol=tolerance, rtol=tolerance)


def test_the_step_is_of_adamws_size() -> None:
    """The entries of the first step have a root mean square of about 0.2 lr, whatever the shape."""
    for shape in ((64, 64), (32, 128), (128, 32)):
        parameter = torch.nn.Parameter(torch.zeros(shape))
        parameter.grad = torch.randn(shape)
        Muon([parameter], lr=1.0).step()
        assert parameter.detach().square().mean().sqrt().item() == pytest.approx(0.2, rel=0.2)


def test_a_matrix_without_gradient_stays() -> None:
    parameter = torch.nn.Parameter(torch.ones(2, 3))
    Muon([parameter], lr=1.0).step()
    assert torch.equal(parameter, torch.ones(2, 3))


def test_matrices_are_taken_together_by_shape_and_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muon, "TOGETHER", 120)  # one (8, 8), two of (6, 10) or (10, 6)
    given = [torch.zeros(shape) for shape in [(8, 8), (6, 10), (8, 8), (6, 10), (6, 10), (20, 20)]]
    taken = [[tuple(matrix.shape) for matrix in together] for together in of_one_shape(given)]
    assert taken == [[(8, 8)], [(8, 8)], [(6, 10), (6, 10)], [(6, 10)], [(20, 20)]]
