"""GGUF's number formats against the `gguf` package, bit for bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pellucid.checkpoints.gguf_quants import BY_NAME, dequantise
from pellucid.checkpoints.gguf_write import encode

QUANTISED = [name for name, stored in BY_NAME.items() if stored.unpack]


def same_bits(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> bool:
    """Equal to the last bit; two NaNs are equal whatever they carry."""
    return bool(np.all((ours.view(np.uint32) == theirs.view(np.uint32)) | (np.isnan(ours) & np.isnan(theirs))))


def q8_0(values: np.ndarray) -> np.ndarray:
    """As the writer of files has it."""
    return encode("blk.0.attn_q.weight", torch.from_numpy(values.reshape(1, -1)), "Q8_0")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # random scales are infinite at times, on both sides
@pytest.mark.parametrize("name", QUANTISED)
def test_any_bytes_mean_what_they_mean_to_the_gguf_package(name: str) -> None:
    stored = BY_NAME[name]
    blocks = np.random.default_rng(0).integers(0, 256, (3000, stored.size), dtype=np.uint8)
    theirs = gguf.dequantize(blocks, gguf.GGMLQuantizationType[name]).ravel()
    assert same_bits(dequantise(blocks, stored), theirs)


@given(st.lists(st.floats(-1000, 1000, width=32), min_size=32, max_size=32))
def test_q8_0_is_written_as_the_gguf_package_writes_it(values: list[float]) -> None:
    block = np.array(values, np.float32)
    theirs = gguf.quantize(block[None], gguf.GGMLQuantizationType.Q8_0).ravel()
    assert q8_0(block).tobytes() == theirs.tobytes()


def test_q8_0_of_many_blocks_with_halves_zeros_and_tiny_numbers() -> None:
    random = np.random.default_rng(1).standard_normal(32 * 5000).astype(np.float32)
    halves = (np.arange(-64, 64) / 2).astype(np.float32) * np.float32(127 / 32)
    values = np.concatenate([random, halves, np.zeros(32, np.float32), np.full(32, 1e-9, np.float32)])
    theirs = gguf.quantize(values[None], gguf.GGMLQuantizationType.Q8_0).ravel()
    assert q8_0(values).tobytes() == theirs.tobytes()


@given(st.lists(st.floats(-1000, 1000, width=32), min_size=32, max_size=32))
def test_q8_0_comes_back_within_half_a_step(values: list[float]) -> None:
    block = np.array(values, np.float32)
    step = np.abs(block).max() / 127
    back = dequantise(q8_0(block), BY_NAME["Q8_0"])
    # Half a step of rounding, and the step itself as float16: 2**-11 of it 127 times, or 2**-25 where it is tiny.
    assert np.abs(back - block).max() <= step / 2 + 127 * max(step * 2.0**-11, 2.0**-25) + 1e-7
