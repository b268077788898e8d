"""The operations of the native step against PyTorch; what they do together is tried in tests/inference."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pellucid.checkpoints.gguf_quants import BY_NAME, dequantise
from pellucid.operations import step
from pellucid.operations.step import ACTIVATION_NUMBERS, BLOCKS, TYPES, Kind, NativeLinear, Program, Rows, why_not
from tests.operations import portable

pytestmark = pytest.mark.skipif(why_not(torch.float32) is not None, reason="there is no native step here")

both_ways = portable.compiled(step)


def linear(x: Tensor, weight: Tensor, type_: int, outputs: int, **fields: float) -> Tensor:
    """y of one LINEAR over the rows of x, to which `to` is added where it says so."""
    rows = Rows(count=len(x))
    to = torch.full((len(x), outputs), 2.0)
    program = Program()
    inputs = x.shape[1] // 2 if fields.get("gated") else x.shape[1]
    program.add(Kind.LINEAR, type=type_, weight=weight, source=x, to=to, inputs=inputs, outputs=outputs, **fields)
    program.run(rows)
    return to


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 80), inputs=st.integers(1, 150), outputs=st.integers(1, 40), seed=st.integers(0, 99),
    activation=st.sampled_from([None, *ACTIVATION_NUMBERS]), add=st.booleans(), cap=st.sampled_from([0.0, 3.0]),
    dtype=st.sampled_from(list(TYPES)),
)  # fmt: skip
def test_a_linear_layer_and_what_it_reads(rows, inputs, outputs, seed, activation, add, cap, dtype):
    torch.manual_seed(seed)
    gated = activation is not None and activation.endswith(("glu", "glu_tanh"))
    x, weight = torch.randn(rows, inputs * (2 if gated else 1)), torch.randn(outputs, inputs).to(dtype)
    bias = torch.randn(outputs)
    fields = {"bias": bias, "add": int(add), "cap": cap, "gated": int(gated)}
    if activation is not None:
        fields["activation"] = ACTIVATION_NUMBERS[activation]
    ours = linear(x, weight, TYPES[dtype], outputs, **fields)
    first, *second = x.split(inputs, dim=1)
    plain = {
        None: lambda v: v, "relu": F.relu, "gelu": F.gelu, "geglu": F.gelu, "swiglu": F.silu,
        "gelu_tanh": lambda v: F.gelu(v, approximate="tanh"), "geglu_tanh": lambda v: F.gelu(v, approximate="tanh"),
    }[activation]  # fmt: skip
    read = plain(first) * second[0] if second else plain(first)
    expected = F.linear(read, weight.float(), bias)
    expected = cap * torch.tanh(expected / cap) if cap else expected
    # For weights in bfloat16 some processors round what is read to it too: by 2^-8 of each number at most. tanh, as
    # long as the cap is there, makes no difference larger.
    rounded = 2**-8 if dtype == torch.bfloat16 else 0
    most = (1e-5 + rounded) * F.linear(read.abs(), weight.float().abs(), bias.abs()) + 1e-5
    assert ((ours - (expected + 2 if add else expected)).abs() <= most).all()


@settings(deadline=None, max_examples=30)
@given(
    counts=st.lists(st.integers(0, 30), min_size=3, max_size=3), inputs=st.integers(1, 20), outputs=st.integers(1, 150),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_what_an_adapter_adds_to_its_own_rows(counts, inputs, outputs, seed):
    """y = f_a * (W x) for the rows of each adapter a, and then y += g * (x' B) for those of the last alone."""
    torch.manual_seed(seed)
    R, beside = sum(counts), 3
    of = torch.arange(3).repeat_interleave(torch.tensor(counts))
    ends = torch.tensor(counts).cumsum(0)
    ranges = torch.stack([ends - torch.tensor(counts), ends], 1).contiguous()
    x, weight, small = torch.randn(R, 7), torch.randn(outputs, 7), torch.randn(inputs, outputs)
    read, to = torch.randn(R, inputs + beside), torch.zeros(R, outputs + beside)
    factors, scale = torch.randn(2, outputs), torch.randn(outputs)
    table = torch.tensor([0, factors[0].data_ptr(), factors[1].data_ptr()])
    own = torch.tensor([0, 0, scale.data_ptr()])
    program = Program()
    shape = {"outputs": outputs, "stride": outputs + beside}
    program.add(Kind.LINEAR, type=0, weight=weight, factors=table, source=x, to=to, inputs=7, **shape)
    program.add(
        Kind.SPREAD,
        weight=small,
        factors=own,
        source=read,
        to=to,
        inputs=inputs,
        row=inputs + beside,
        adapter=2,
        **shape,
    )
    program.run(Rows(count=R, adapters=of.data_ptr(), ranges=ranges.data_ptr()))
    expected = x @ weight.T * torch.cat([torch.ones(1, outputs), factors])[of]
    last = (of == 2)[:, None]
    expected += last * (read[:, :inputs] @ small) * scale
    most = 1e-5 * (1 + x.abs() @ weight.T.abs() * 9 + (read[:, :inputs].abs() @ small.abs()) * 9)
    assert ((to[:, :outputs] - expected).abs() <= most).all() and not to[:, outputs:].any()


@settings(deadline=None, max_examples=30)
@given(
    name=st.sampled_from(list(BLOCKS)), rows=st.integers(1, 80), blocks=st.integers(1, 9), outputs=st.integers(1, 20),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_blocks_of_integers_are_read_as_they_lie_in_the_file(name, rows, blocks, outputs, seed):
    """x is rounded to a byte, 1 / 254 of its largest neighbour at most, which is the error that is allowed here."""
    rng = np.random.default_rng(seed)
    stored = BY_NAME[name]
    weight = rng.integers(0, 256, (outputs * blocks, stored.size), dtype=np.uint8)
    scales = rng.standard_normal((outputs * blocks, 2)).astype(np.float16)
    weight[:, :2] = scales[:, :1].view(np.uint8)
    if name == "Q4_1":
        weight[:, 2:4] = scales[:, 1:].copy().view(np.uint8)
    exact = torch.from_numpy(dequantise(weight.reshape(-1), stored)).view(outputs, 32 * blocks)
    x = torch.from_numpy(rng.standard_normal((rows, 32 * blocks), dtype=np.float32))
    ours = linear(x, torch.from_numpy(weight), BLOCKS[name], outputs)
    steps = x.view(rows, blocks, 32).abs().amax(-1) / 254  # (rows, blocks)
    most = torch.einsum("rb,obi->ro", steps, exact.abs().view(outputs, blocks, 32))
    assert ((ours - F.linear(x, exact)).abs() <= most + 1e-4).all()
    alone = torch.cat([linear(row[None], torch.from_numpy(weight), BLOCKS[name], outputs) for row in x])
    assert torch.equal(ours, alone)


@pytest.mark.parametrize("dtype", list(TYPES))
def test_a_row_of_a_linear_layer_does_not_depend_on_the_others(dtype: torch.dtype) -> None:
    """Bit for bit, whether it is alone, one of eight that go together, or one of the rest."""
    x, weight = torch.randn(90, 100), torch.randn(50, 100).to(dtype)
    layer = NativeLinear(weight)
    alone = torch.cat([layer(row[None]) for row in x])
    for rows in (*range(1, 18), 64, 65, 90):
        assert torch.equal(layer(x[:rows]), alone[:rows])


def test_extreme_numbers_pass_through() -> None:
    x = torch.tensor([[float("inf"), 0.0], [float("nan"), 0.0], [3e38, 3e38]])
    got = NativeLinear(torch.ones(1, 2, dtype=torch.bfloat16))(x)
    assert got[0].isinf() and got[1].isnan() and got[2].isinf()


def test_without_native_code_this_is_said() -> None:
    """In a process of its own, since the library is loaded once."""
    program = "import torch; from pellucid.operations import step; print(step.describe(torch.float32))"
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PELLUCID_NATIVE": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout == "PyTorch (not native: PELLUCID_NATIVE=0 switches it off)\n"
    assert step.describe(torch.float32) == "native"
    assert step.describe(torch.float16) == "PyTorch (not native: its type is float16)"
