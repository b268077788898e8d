"""PyTorch's kernel for 4 bits over blocks of integers, against the widened matrix."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.layers.quantised import Blocks, QuantisedLinear
from pellucid.operations import packed_blocks, step
from pellucid.operations.blocks import BYTES, from_blocks, to_blocks
from pellucid.operations.packed_blocks import PackedBlocks, why_not

CPU = torch.device("cpu")


@settings(max_examples=30)
@given(
    format=st.sampled_from(list(BYTES)), out=st.integers(1, 40), blocks=st.integers(1, 5), rows=st.integers(1, 9),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_it_is_the_product_with_the_widened_matrix(format: str, out: int, blocks: int, rows: int, seed: int) -> None:  # noqa: A002
    """Scales, inputs and the answer are bfloat16: each is wrong by 2^-9 at most."""
    torch.manual_seed(seed)
    held = to_blocks(torch.randn(out, 32 * blocks) + 0.5, format)
    x = torch.randn(rows, 32 * blocks).bfloat16()
    ours, wide = PackedBlocks(held, format)(x), from_blocks(held, format)
    assert ours.dtype == torch.bfloat16
    off = (ours.float() - x.float() @ wide.T).abs()
    # In Q4_1 and the low halves of Q8_0 the kernel's s (u - 8) and z are larger than the weight that they add up to.
    sizes = x.float().abs() @ (wide.abs() + wide.abs().amax(1, keepdim=True)).T
    assert (off <= 2**-7 * sizes + 1e-5).all() and off.mean() < 0.02 * x.float().abs().sum(1).mean()


def test_a_layer_uses_it_where_there_is_no_native_step(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(24, 64)
    layer, x = QuantisedLinear(Blocks(to_blocks(weight, "Q4_1"), "Q4_1")), torch.randn(2, 3, 64).bfloat16()
    widened = layer(x)
    assert layer.packed is None or step.why_not(torch.float32) is not None
    monkeypatch.setattr(step, "why_not", lambda dtype: "there is no compiler")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    torch.testing.assert_close(layer(x), widened, rtol=0.05, atol=0.05)
    assert layer.packed is not None
    monkeypatch.setattr(PackedBlocks, "__call__", lambda self, x: pytest.fail("this is not for the kernel"))
    layer(x.float())
    layer(x.float().requires_grad_().bfloat16()).sum().backward()
    layer(torch.randn(packed_blocks.ROWS + 1, 64).bfloat16())


def test_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert why_not(torch.bfloat16, torch.device("meta")) == "it is on meta"
    assert why_not(torch.float32, CPU) == "its type is float32"
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert why_not(torch.bfloat16, CPU) == "it is slow on this processor (DEFAULT)"
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert why_not(torch.bfloat16, CPU) is None
