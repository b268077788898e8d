"""What is said of a reward model: numbers by hand, and what they are where there is nothing to tell."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.alignment.reward_picture import draw
from pellucid.alignment.reward_report import Scored, correlation, length_bias, reliability
from pellucid.alignment.win_rate import wilson


def test_the_reliability_table_by_hand() -> None:
    """sigmoid(0.2) = 0.550 and sigmoid(0.3) = 0.574 are in the first of five bins, sigmoid(3) = 0.953 in the last."""
    first, last = reliability(np.array([0.2, -0.3, 3.0, 3.0, -3.0]), 5)
    assert (first.low, first.high, first.pairs, first.right) == (0.5, 0.6, 2, 0.5)
    assert first.said == pytest.approx((0.549834 + 0.574443) / 2, abs=1e-6)
    assert (last.pairs, last.low, last.high) == (3, pytest.approx(0.9), 1.0)
    assert last.right == pytest.approx(2 / 3) and last.interval == wilson(2 / 3, 3)
    (even,) = reliability(np.array([0.0, 0.0]), 5)
    assert even.said == even.right == 0.5


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=60), st.integers(2, 10))
def test_every_pair_is_in_one_bin(gaps: list[float], bins: int) -> None:
    table = reliability(np.array(gaps), bins)
    assert sum(one.pairs for one in table) == len(gaps)
    for one in table:
        assert one.low - 1e-9 <= one.said <= one.high + 1e-9 and 0 <= one.right <= 1


def test_length_bias_by_hand() -> None:
    """Three pairs, of lengths (4, 2), (1, 3), (5, 5), the better first; the longer has more reward in the first two."""
    scored = Scored(
        np.array([2.0, 1.0, 0.0, 1.0, 3.0, 2.0]), np.array([4.0, 2, 1, 3, 5, 5]), np.array([[0, 1], [2, 3], [4, 5]])
    )
    bias = length_bias(scored)
    assert (bias.longer_is_better, bias.longer_gets_more) == (0.5, 1.0)
    assert (bias.right_if_longer, bias.right_if_shorter) == (1.0, 0.0)
    # within pairs: reward differences 1, -1, 1 and length differences 2, -2, 0
    assert bias.within == pytest.approx(4 / math.sqrt((8 / 3) * 8))
    assert bias.correlation == pytest.approx(np.corrcoef(scored.reward, scored.length)[0, 1])


def test_what_cannot_be_told_is_none() -> None:
    scored = Scored(np.array([1.0, 0.0]), np.array([3.0, 3.0]), np.array([[0, 1]]))
    bias = length_bias(scored)
    assert bias.correlation is bias.within is bias.longer_is_better is bias.longer_gets_more is None
    assert bias.right_if_longer is bias.right_if_shorter is None
    assert correlation(np.array([1.0, 2.0]), np.array([2.0, 1.0])) == pytest.approx(-1)


def test_the_picture_is_drawn_where_little_is_known() -> None:
    picture = draw([(0.5, 0.5, (0.1, 0.9))], np.array([3.0, 3.0]), np.array([1.0, 0.0]), "runs/reward")
    assert picture.startswith("<svg") and "runs/reward" in picture
