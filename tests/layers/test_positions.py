"""Positions: sinusoids and ALiBi against formulas and transformers. (Rotary scalings: tests/models/test_families.)"""

from __future__ import annotations

import math

import pytest
import torch
from transformers.models.bloom.modeling_bloom import build_alibi_tensor

from pellucid.layers.positions import Rope, alibi_slopes, frequencies, sinusoids


def test_sinusoids_are_the_paper_s() -> None:
    table = sinusoids(torch.tensor([[0, 1, 50]]), 10)[0]
    for row, position in enumerate((0, 1, 50)):
        for i in range(5):
            angle = position / 10000 ** (2 * i / 10)
            assert table[row, 2 * i] == pytest.approx(math.sin(angle), abs=1e-5)
            assert table[row, 2 * i + 1] == pytest.approx(math.cos(angle), abs=1e-5)


@pytest.mark.parametrize("heads", [1, 2, 3, 6, 8, 12, 16])
def test_alibi_slopes_are_bloom_s(heads: int) -> None:
    bias = build_alibi_tensor(torch.ones(1, 2), heads, torch.float32)  # (heads, 1, 2): slope * position
    torch.testing.assert_close(alibi_slopes(heads), bias[:, 0, 1])


def test_linear_scaling_divides_positions() -> None:
    device = torch.device("cpu")
    plain = frequencies(Rope(), 16, None, device)
    torch.testing.assert_close(frequencies(Rope(scaling="linear", factor=4.0), 16, None, device), plain / 4)


def test_dynamic_scaling_leaves_short_texts_alone() -> None:
    rope, device = Rope(scaling="dynamic", factor=2.0, original_max_positions=100), torch.device("cpu")
    plain = frequencies(Rope(), 16, None, device)
    assert torch.equal(frequencies(rope, 16, 100, device), plain)
    assert (frequencies(rope, 16, 300, device) <= plain).all()


def test_yarn_keeps_fast_pairs_and_slows_slow_ones() -> None:
    rope, device = Rope(scaling="yarn", factor=8.0, original_max_positions=2048), torch.device("cpu")
    ratio = frequencies(rope, 128, None, device) / frequencies(Rope(), 128, None, device)
    assert ratio[0] == 1 and ratio[-1] == pytest.approx(1 / 8)
    assert (ratio.diff() <= 1e-6).all()
