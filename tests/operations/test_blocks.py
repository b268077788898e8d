"""Blocks of small integers against the `gguf` package, bit for bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pellucid.errors import InputError
from pellucid.operations import blocks
from pellucid.operations.blocks import BYTES, RANGE, from_blocks, pack, to_blocks, unpack

FORMATS = list(BYTES)


def theirs(weight: Tensor, name: str) -> Tensor:
    return torch.from_numpy(gguf.quantize(weight.numpy(), gguf.GGMLQuantizationType[name]))


def of_many_sorts() -> Tensor:
    """Rows of ordinary weights, halves of a step, zeros, one value, tiny numbers, one sign."""
    normal = torch.randn(50, 96)
    halves = (torch.arange(-48, 48) / 2).expand(2, -1)
    flat = torch.tensor([0.0, 1.5, -1.5, 1e-9, 3e-8]).unsqueeze(1).expand(-1, 96)
    return torch.cat([normal, halves, flat, normal.abs(), -normal.abs(), normal * 1e4, normal * 1e-6])


@pytest.mark.parametrize("name", FORMATS)
def test_blocks_are_those_of_the_gguf_package(name: str) -> None:
    weight = of_many_sorts()
    assert torch.equal(to_blocks(weight, name), theirs(weight, name))


@pytest.mark.parametrize("name", FORMATS)
@given(st.lists(st.floats(-1000, 1000, width=32, allow_subnormal=False), min_size=32, max_size=32))
def test_any_block_is_that_of_the_gguf_package(name: str, numbers: list[float]) -> None:
    weight = torch.tensor([numbers])
    assert torch.equal(to_blocks(weight, name), theirs(weight, name))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # random scales are infinite at times, on both sides
@pytest.mark.parametrize("name", FORMATS)
def test_any_bytes_mean_what_they_mean_to_the_gguf_package(name: str) -> None:
    data = np.random.default_rng(0).integers(0, 256, (100, 30 * BYTES[name]), dtype=np.uint8)
    expected = gguf.dequantize(data, gguf.GGMLQuantizationType[name])
    ours = from_blocks(torch.from_numpy(data), name).numpy()
    assert np.all((ours.view(np.uint32) == expected.view(np.uint32)) | (np.isnan(ours) & np.isnan(expected)))


@pytest.mark.parametrize("name", FORMATS)
def test_packing_is_the_reverse_of_unpacking(name: str) -> None:
    stored = to_blocks(of_many_sorts(), name)
    parts = unpack(stored, name)
    low, high = RANGE[name]
    assert int(parts.integers.min()) >= low and int(parts.integers.max()) <= high
    assert torch.equal(pack(parts, name), stored)


@pytest.mark.parametrize("name", FORMATS)
def test_a_large_matrix_goes_in_parts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(33, 64)
    whole = to_blocks(weight, name)
    back = from_blocks(whole, name)
    monkeypatch.setattr(blocks, "CHUNK", 64 * 5)
    assert torch.equal(to_blocks(weight, name), whole)
    assert torch.equal(from_blocks(whole, name), back)
    assert torch.equal(from_blocks(whole, name, torch.bfloat16), back.bfloat16())


@pytest.mark.parametrize("name", FORMATS)
def test_what_cannot_be_expressed_is_said(name: str) -> None:
    with pytest.raises(InputError, match="no multiple of 32"):
        to_blocks(torch.zeros(2, 40), name)
    for value in (1e8, float("inf"), float("nan")):
        with pytest.raises(InputError, match="65504"):
            to_blocks(torch.full((1, 32), value), name)
