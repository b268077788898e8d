"""Which scales a block gets: never worse than ggml's choice, exact where it can be."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pellucid.inference.quantisation.rounding import Grid, round_matrix
from pellucid.operations.blocks import BYTES, from_blocks, to_blocks, unpack

FORMATS = list(BYTES)


@pytest.mark.parametrize("name", FORMATS)
def test_errors_are_no_larger_than_those_of_ggml(name: str) -> None:
    weight = torch.randn(64, 128)
    weight[:, 5] *= 6  # outliers

    def error(blocks: torch.Tensor) -> torch.Tensor:
        return ((from_blocks(blocks, name) - weight) ** 2).sum()

    ours, theirs = error(round_matrix(weight, Grid(name))), error(to_blocks(weight, name))
    assert ours < theirs * (0.97 if name == "Q4_0" else 1.0)


@pytest.mark.parametrize("name", FORMATS)
def test_what_the_blocks_can_say_is_said_exactly(name: str) -> None:
    weight = from_blocks(to_blocks(torch.randn(64, 128), name), name)
    assert torch.equal(from_blocks(round_matrix(weight, Grid(name)), name), weight)


@pytest.mark.parametrize("name", FORMATS)
@given(st.lists(st.floats(-100, 100, width=32), min_size=32, max_size=32))
def test_short_scales_are_exact_in_sixteen_bits_and_zero_points_are_whole(name: str, numbers: list[float]) -> None:
    parts = unpack(round_matrix(torch.tensor([numbers]), Grid(name, short=True)), name)
    assert torch.equal(parts.scale.bfloat16().float(), parts.scale)
    if parts.minimum is not None:
        zero = torch.where(parts.scale == 0, 0, -parts.minimum / parts.scale)
        assert torch.equal(zero, zero.round().clamp(0, 15))


@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize("name", FORMATS)
@given(st.lists(st.floats(-100, 100, width=32), min_size=32, max_size=32))
def test_no_weight_moves_farther_than_the_range_allows(name: str, short: bool, numbers: list[float]) -> None:
    weight = torch.tensor([numbers])
    back = from_blocks(round_matrix(weight, Grid(name, short)), name)
    span = float(weight.amax().clamp(min=0) - weight.amin().clamp(max=0))
    steps = {"Q8_0": 127, "Q4_0": 8, "Q4_1": 15}[name]
    # The least sum of squares is at most that of the first scale that is tried: half a step for each of 32 weights.
    assert float(((back - weight) ** 2).sum()) <= 32 * (span * 1.02 / steps) ** 2 + 1e-9


def test_importance_decides_which_errors_count() -> None:
    weight = torch.randn(1, 1, 32)
    weight[..., 0] = 20  # an outlier that nothing reads
    importance = torch.ones(32)
    importance[0] = 0
    scale, _ = Grid("Q4_0").fit(weight, importance)
    plain, _ = Grid("Q4_0").fit(weight)
    assert abs(float(scale)) < abs(float(plain))
