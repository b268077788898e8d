"""The order of an epoch: a permutation whatever the length, the same for ever, and shuffled well."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pellucid.data.order import Permutation, random_number


@given(st.integers(1, 2000), st.integers(0, 2**64), st.integers(0, 1000))
def test_every_place_is_taken_once(length: int, seed: int, epoch: int) -> None:
    went = Permutation(length, seed, epoch)(np.arange(length))
    assert sorted(went.tolist()) == list(range(length))


@given(st.integers(1, 2**61), st.lists(st.integers(0, 2**61), min_size=1, max_size=20), st.integers(0, 9))
def test_a_place_goes_where_it_goes_alone(length: int, places: list[int], seed: int) -> None:
    """However many are asked at once, and however long the epoch is."""
    given_places = np.array([place % length for place in places])
    order = Permutation(length, seed)
    went = order(given_places)
    assert ((went >= 0) & (went < length)).all()
    assert went.tolist() == [order(given_places[i : i + 1]).item() for i in range(len(places))]
    assert len(set(went.tolist())) == len(set(given_places.tolist()))


def test_it_is_the_same_for_ever() -> None:
    """A run that resumes with a later version of this program goes on in its order."""
    assert Permutation(10, "stream", 0, 0)(np.arange(10)).tolist() == [3, 5, 8, 2, 0, 4, 1, 6, 7, 9]
    assert Permutation(1_000_003, "whole", 7, 2)(np.arange(3)).tolist() == [389768, 176261, 935538]
    assert random_number(1_000_000, "stream", 3, 1) == 719257


def test_all_orders_are_equally_likely() -> None:
    seen = Counter(tuple(Permutation(4, seed)(np.arange(4)).tolist()) for seed in range(12_000))
    chi_square = sum((count - 500) ** 2 / 500 for count in seen.values())
    assert len(seen) == 24 and chi_square < 49.7  # 0.999 of the distribution with 23 degrees of freedom


def test_epochs_and_neighbours_have_nothing_in_common() -> None:
    n = 10_000
    one, other = (Permutation(n, 0, epoch)(np.arange(n)) for epoch in (0, 1))
    assert (one == other).sum() < 10  # 1 is expected
    for pair in ((one, other), (one[:-1], one[1:]), (one, np.arange(n))):
        assert abs(np.corrcoef(*pair)[0, 1]) < 0.04  # four standard deviations
