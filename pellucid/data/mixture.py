"""Rows of two sources in a fixed proportion, spread evenly: old text among the new, against forgetting."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import torch

from pellucid.data.examples import Examples, Rows
from pellucid.errors import InputError


class Mixture:
    """`fraction` of the rows are from `other`, the others from `main`.

    Row g is from `other` iff floor((g + 1) f) > floor(g f), and is then its row floor(g f); else it is row
    g - floor(g f) of `main`. An epoch is as many rows as hold one epoch of `main`. Each source keeps its own order, and
    begins its own next epoch when it is through. Raises `InputError` if their contexts differ.
    """

    def __init__(self, main: Rows, other: Rows, fraction: float) -> None:
        if not 0 < fraction < 1:
            raise InputError(f"a mixture with {fraction} of other text: the fraction must be between 0 and 1")
        if main.context != other.context:
            raise InputError(
                f"rows of {main.context} and of {other.context} tokens cannot be mixed: make both with one context"
            )
        self.main, self.other, self.context = main, other, main.context
        exact = Fraction(fraction).limit_denominator(1_000_000)  # so that no rounding moves a row, however large g is
        self._of, self._in = exact.numerator, exact.denominator

    def __len__(self) -> int:
        # The least n of which n - floor(n f) = ceil(n (1 - f)) are len(main).
        return (len(self.main) - 1) * self._in // (self._in - self._of) + 1

    def read(self, indices: Sequence[int]) -> Examples:
        """These rows."""
        g = np.asarray(indices, np.int64)
        others = g * self._of // self._in  # rows of `other` before row g
        is_other = (g + 1) * self._of // self._in > others
        if is_other.all():
            return self.other.read(others.tolist())
        if not is_other.any():
            return self.main.read((g - others).tolist())
        parts = self.main.read((g - others)[~is_other].tolist()), self.other.read(others[is_other].tolist())
        back = torch.from_numpy(np.argsort(np.argsort(is_other, kind="stable")))
        names = ("tokens", "targets", "positions", "documents")
        return Examples(*(torch.cat([getattr(part, name) for part in parts])[back] for name in names))
