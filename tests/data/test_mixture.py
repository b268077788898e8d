"""Mixtures: the proportion is kept everywhere, each source in its own order, and the same whoever reads."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pellucid.data.examples import Examples
from pellucid.data.mixture import Mixture
from pellucid.data.packing import Stream
from pellucid.errors import InputError
from tests.data.made import in_memory

MAIN = Stream(in_memory([[1] * 35] * 10), 5, 0)
OTHER = Stream(in_memory([[2] * 7] * 10), 5, 0)


class Numbers:
    """Rows that say where they are from."""

    context = 1

    def __init__(self, source: int, length: int) -> None:
        self.source, self.length = source, length

    def __len__(self) -> int:
        return self.length

    def read(self, indices: Sequence[int]) -> Examples:
        number = torch.tensor(list(indices))[:, None]
        return Examples(torch.full_like(number, self.source), number, number, number)


@given(st.fractions(Fraction(1, 100), Fraction(99, 100), max_denominator=100), st.integers(1, 50), st.integers(0, 400))
def test_each_source_comes_in_order_and_in_proportion(fraction: Fraction, length: int, start: int) -> None:
    mixture = Mixture(Numbers(0, length), Numbers(1, 3), float(fraction))
    read = mixture.read(range(start, start + 100))
    sources, numbers = read.tokens[:, 0].tolist(), read.targets[:, 0].tolist()
    for end in range(1, 101):  # never a row away from the proportion
        assert abs(sum(sources[:end]) - end * fraction) <= 1
    for source in (0, 1):
        own = [number for number, from_source in zip(numbers, sources, strict=True) if from_source == source]
        assert own == list(range(own[0], own[0] + len(own))) if own else True
    before = start * fraction.numerator // fraction.denominator
    assert numbers[0] == (before if sources[0] else start - before)
    epoch = mixture.read(range(len(mixture))).tokens.flatten().tolist()
    assert epoch.count(0) == length and epoch[-1] == 0
    shuffled = [start + 17, start + 3, start + 50]
    assert mixture.read(shuffled).targets.flatten().tolist() == [numbers[17], numbers[3], numbers[50]]


def test_a_row_is_of_one_source_and_whole() -> None:
    mixture = Mixture(MAIN, OTHER, 0.25)
    read = mixture.read(range(40))
    assert [row[0] for row in read.tokens.tolist()] == [1, 1, 1, 2] * 10
    assert all(len(set(row)) == 1 for row in read.tokens.tolist())
    assert read.documents.min() >= 0


def test_what_cannot_be_mixed() -> None:
    for fraction in (0.0, 1.0, -0.5, 2.0):
        with pytest.raises(InputError, match="must be between 0 and 1"):
            Mixture(MAIN, OTHER, fraction)
    with pytest.raises(InputError, match="rows of 5 and of 6 tokens cannot be mixed"):
        Mixture(MAIN, Stream(in_memory([[1] * 30]), 6, 0), 0.5)
