"""Layers over blocks of integers: what they give is what the widened matrix gives."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gguf import quants
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pellucid.layers import quantised
from pellucid.layers.quantised import Blocks, QuantisedEmbedding, QuantisedLinear
from pellucid.operations.blocks import BYTES

FORMATS = st.sampled_from(list(BYTES))


def random_blocks(format: str, rows: int, blocks: int, seed: int) -> tuple[Blocks, Tensor]:  # noqa: A002
    """Any bytes with scales that are numbers, and what the gguf package makes of them."""
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, (rows * blocks, BYTES[format]), dtype=np.uint8)
    for place in (0, 2) if format == "Q4_1" else (0,):
        scales = rng.standard_normal((rows * blocks, 1)).astype(np.float16)
        data[:, place : place + 2] = scales.view(np.uint8)
    data = data.reshape(rows, -1)
    wide = quants.dequantize(data, gguf.GGMLQuantizationType[format])
    return Blocks(torch.from_numpy(data), format), torch.from_numpy(wide)


@settings(max_examples=40)
@given(
    format=FORMATS, rows=st.integers(1, 9), blocks=st.integers(1, 5), seed=st.integers(0, 99), part=st.integers(1, 99)
)
def test_a_linear_layer_widens_what_the_gguf_package_widens(
    format: str,  # noqa: A002
    rows: int,
    blocks: int,
    seed: int,
    part: int,
) -> None:
    held, wide = random_blocks(format, rows, blocks, seed)
    generator = torch.Generator().manual_seed(seed)
    bias = nn.Parameter(torch.randn(rows, generator=generator))
    x = torch.randn(2, 3, 32 * blocks, generator=generator)
    layer = QuantisedLinear(held, bias)
    assert (layer.out_features, layer.in_features) == (rows, 32 * blocks)
    assert torch.equal(layer.widened(torch.float32), wide)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantised, "PART", part)  # the matrix is widened in parts, whatever their size
        # Sums of n products in two orders: each is within n eps sum |x w| of the exact one (Higham 2002, section 3.1).
        most = 2 * 32 * blocks * torch.finfo(torch.float32).eps * F.linear(x.abs(), wide.abs(), bias.abs())
        assert ((layer(x) - F.linear(x, wide, bias)).abs() <= most).all()


@settings(max_examples=20)
@given(format=FORMATS, rows=st.integers(1, 9), blocks=st.integers(1, 5), seed=st.integers(0, 99))
def test_an_embedding_gives_rows_in_the_models_type(format: str, rows: int, blocks: int, seed: int) -> None:  # noqa: A002
    held, wide = random_blocks(format, rows, blocks, seed)
    tokens = torch.randint(0, rows, (2, 4))
    layer = QuantisedEmbedding(held, torch.float32)
    assert torch.equal(layer(tokens), wide[tokens])
    narrow = layer.to(torch.bfloat16)(tokens)
    assert narrow.dtype == torch.bfloat16 and torch.equal(narrow, wide[tokens].bfloat16())
    assert layer.blocks.dtype == torch.uint8  # `to` leaves the blocks alone


def test_gradients_reach_the_input_and_not_the_blocks() -> None:
    held, wide = random_blocks("Q4_1", 6, 2, 0)
    layer, x = QuantisedLinear(held), torch.randn(3, 64, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, wide.sum(0).expand(3, -1))
    assert list(layer.parameters()) == [] and list(layer.state_dict()) == ["blocks"]


def test_the_type_of_the_answer_is_that_of_the_question() -> None:
    held, _ = random_blocks("Q8_0", 6, 2, 0)
    assert QuantisedLinear(held)(torch.randn(3, 64).bfloat16()).dtype == torch.bfloat16
