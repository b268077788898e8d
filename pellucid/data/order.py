"""A fixed random order in no memory: place i of an epoch is computed from (seed, epoch, i) alone (promise D1).

A Feistel network is a permutation of the numbers of 2^b whatever its round function is. Where the length is no power of
two, a number that falls outside is sent through again until it falls inside, which keeps it a permutation ("cycle
walking", Black and Rogaway 2002, "Ciphers with arbitrary finite domains", section 3).
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

_ROUNDS = 6
_LARGEST = 1 << 62
_ONE, _WORD = np.uint64(1), np.uint64(64)
_SHIFTS = np.uint64(30), np.uint64(27)
_FACTORS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def random_number(below: int, *key: int | str) -> int:
    """A number from 0 up to, not including, `below`, which is a pure function of `key`."""
    return int.from_bytes(_digest(*key), "little") % below


class Permutation:
    """A permutation of 0 ... length - 1, which is a pure function of `length` and `key`."""

    def __init__(self, length: int, *key: int | str) -> None:
        assert 0 < length < _LARGEST
        self.length = length
        bits = max((length - 1).bit_length(), 2)
        shorter, longer = np.uint64(bits // 2), np.uint64(bits - bits // 2)
        self._halves = ((shorter, longer), (longer, shorter))  # bits of left and right, in even and odd rounds
        self._keys = list(np.frombuffer(_digest("permutation", length, *key), "<u8")[:_ROUNDS])

    def __call__(self, places: Ints) -> Ints:
        """Where each of `places`, any array of numbers below `length`, goes."""
        x = self._encrypt(places.astype(np.uint64))
        while (outside := x >= self.length).any():
            x[outside] = self._encrypt(x[outside])
        return x.astype(np.int64)

    def _encrypt(self, x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        """x = (left, right) -> (right, left xor f(right)), once a round; the halves may differ by a bit."""
        for number, key in enumerate(self._keys):
            a, b = self._halves[number % 2]
            left, right = x >> b, x & ((_ONE << b) - _ONE)
            x = (right << a) | (left ^ (_mix(right + key) >> (_WORD - a)))
        return x


@lru_cache(maxsize=64)
def permutation(length: int, *key: int | str) -> Permutation:
    """`Permutation`, kept from one call to the next."""
    return Permutation(length, *key)


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Every bit of x into the high bits, by SplitMix64's multiplications and shifts (Steele et al. 2014, figure 17)."""
    x = (x ^ (x >> _SHIFTS[0])) * _FACTORS[0]
    return (x ^ (x >> _SHIFTS[1])) * _FACTORS[1]


def _digest(*key: int | str) -> bytes:
    return hashlib.blake2b("/".join(map(str, key)).encode()).digest()
