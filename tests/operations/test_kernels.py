"""The native kernels against PyTorch, on any shape; and what happens where there are none."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from pellucid.operations import kernels
from pellucid.operations.kernels import MOST_ROWS, NativeLinear, native_rms_norm
from pellucid.operations.linear import describe_linear, fast_linear, pack, packed_linear, why_not_fast, why_not_packable
from pellucid.operations.norm import rms_norm
from tests.operations import portable

DTYPES = [torch.float32, torch.bfloat16]
# float32: another order of summing. bfloat16: its rounding of the result, relative 2^-8, twice where sums differ.
TOLERANCE = {torch.float32: {"atol": 1e-4, "rtol": 1e-5}, torch.bfloat16: {"atol": 0.02, "rtol": 2**-7}}

pytestmark = pytest.mark.skipif(kernels.library() is None, reason="no compiler here")
both_ways = portable.compiled(kernels)


@pytest.mark.parametrize("dtype", DTYPES)
@given(
    rows=st.integers(1, MOST_ROWS + 4),
    inputs=st.sampled_from([1, 2, 31, 32, 33, 64, 65, 100, 192]),
    outputs=st.integers(1, 40),
    biased=st.booleans(),
    seed=st.integers(0, 999),
)
def test_linear_is_pytorch_s(dtype: torch.dtype, rows: int, inputs: int, outputs: int, biased: bool, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, inputs, generator=g).to(dtype)
    weight = torch.randn(outputs, inputs, generator=g).to(dtype)
    bias = torch.randn(outputs, generator=g).to(dtype) if biased else None
    exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    got = NativeLinear(weight, bias)(x)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), exact, **TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_does_not_depend_on_the_others(dtype: torch.dtype) -> None:
    """Bit for bit, whether it is alone, one of eight that go together, or one of the rest."""
    x, weight = torch.randn(MOST_ROWS, 100).to(dtype), torch.randn(50, 100).to(dtype)
    linear = NativeLinear(weight, None)
    alone = torch.cat([linear(row[None]) for row in x])
    for rows in range(1, MOST_ROWS + 1):
        assert torch.equal(linear(x[:rows]), alone[:rows])


def test_inputs_of_any_layout() -> None:
    """A slice, a transposed batch, a batch of more dimensions; a weight that is a slice of another."""
    x = torch.randn(4, 3, 2, 40).transpose(0, 1)[..., 5:37]
    weight = torch.randn(20, 64)[::2, 32:]
    torch.testing.assert_close(NativeLinear(weight, None)(x), F.linear(x, weight), atol=1e-5, rtol=1e-5)


def test_extreme_numbers_pass_through() -> None:
    x = torch.tensor([[float("inf"), 0.0], [float("nan"), 0.0], [3e38, 3e38]], dtype=torch.bfloat16)
    got = NativeLinear(torch.ones(1, 2, dtype=torch.bfloat16), None)(x)
    assert got[0].isinf() and got[1].isnan() and got[2].isinf()


@pytest.mark.parametrize("dtype", DTYPES)
@given(rows=st.integers(1, 40), size=st.sampled_from([1, 31, 32, 33, 64, 100, 576]), seed=st.integers(0, 999))
def test_rms_norm_is_pytorch_s(dtype: torch.dtype, rows: int, size: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, size, generator=g).to(dtype)
    weight = torch.randn(size, generator=g).to(dtype)
    got, expected = native_rms_norm(x, weight, 1e-5), rms_norm(x, weight, 1e-5)
    torch.testing.assert_close(got, expected, **TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_packed_way_is_pytorch_s(dtype: torch.dtype) -> None:
    if reason := why_not_packable(dtype):
        pytest.skip(reason)
    x, weight, bias = torch.randn(3, 100).to(dtype), torch.randn(50, 100).to(dtype), torch.randn(50).to(dtype)
    got = packed_linear(x, pack(weight), bias)
    torch.testing.assert_close(got, F.linear(x, weight, bias), **TOLERANCE[dtype])


def test_what_has_no_fast_way_says_why() -> None:
    assert why_not_fast(torch.empty(1, 1, dtype=torch.float16)) == "its type is float16"
    assert why_not_fast(torch.empty(1, 1, device="meta")) == "it is on meta"
    assert why_not_fast(torch.empty(1, 1)) is None


def test_without_native_code_the_other_way_is_taken_and_said() -> None:
    """In a process of its own, since the library is loaded once."""
    program = (
        "import torch; from pellucid.operations import kernels, linear\n"
        "x, w = torch.randn(2, 64), torch.randn(8, 64)\n"
        "torch.testing.assert_close(linear.fast_linear(w, None)(x), x @ w.T, atol=1e-4, rtol=1e-4)\n"
        "print(linear.describe_linear(torch.float32))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PELLUCID_NATIVE": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "not native: PELLUCID_NATIVE=0 switches it off" in ended.stdout
    assert describe_linear(torch.float32).startswith("native")
    assert isinstance(fast_linear(torch.ones(1, 1), None), NativeLinear)
