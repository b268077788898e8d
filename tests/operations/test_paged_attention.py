"""Attention over a paged cache by FlexAttention: the same as plain attention over what each sequence holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import flex_attention

from pellucid.operations.attention import Mask, attention
from pellucid.operations.paged_attention import FAR, compiled, paged_attention, seen_blocks, why_not

B, W, BLOCKS = 16, 3, 8  # tokens a block, blocks of a sequence, blocks of the cache
H, K, D = 4, 2, 16


@pytest.fixture(autouse=True, scope="module")
def eager_is_meant(one_thread: None) -> Iterator[None]:
    """FlexAttention warns of being called without a compiler, and compiles a part all the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
        yield


@st.composite
def tiles(draw: st.DrawFn, Z: int, M: int) -> tuple[Tensor, Tensor]:
    """Positions (Z, M) that grow by one and end in repeats of the last, and tables (Z, W)."""
    positions, tables = [], []
    for _ in range(Z):
        first = draw(st.integers(0, B * W - 1))
        last = min(first + draw(st.integers(0, M - 1)), B * W - 1)
        positions.append([min(first + m, last) for m in range(M)])
        held = draw(st.permutations(range(BLOCKS - 1)))[: last // B + 1]
        tables.append([*held, *[BLOCKS - 1] * (W - len(held))])
    return torch.tensor(positions), torch.tensor(tables)


@given(data=st.data(), M=st.sampled_from([1, 4, 20]), window=st.sampled_from([None, 1, 5, 16, 17, 40]))
@settings(max_examples=150)
def test_the_blocks_of_a_tile_are_those_that_its_queries_see(data: st.DataObject, M: int, window: int | None) -> None:
    positions, tables = data.draw(tiles(3, M))
    real = torch.tensor([True, True, False])
    seen = seen_blocks(positions, tables, real, BLOCKS, B, window)
    for z, table in enumerate(tables.tolist()):
        held = table[: int(positions[z, -1]) // B + 1]
        assert seen.places[z].tolist()[: BLOCKS - 1] == [
            held.index(block) if block in held else FAR for block in range(BLOCKS - 1)
        ]
        keys = torch.arange(len(held) * B)
        sees = keys <= positions[z, :, None]
        if window is not None:
            sees &= keys > positions[z, :, None] - window
        by_block = sees.unflatten(1, (-1, B)).transpose(0, 1).flatten(1)  # (blocks, M * B)
        whole = {block for block, all_seen in zip(held, by_block.all(1).tolist(), strict=True) if all_seen}
        any_seen = {block for block, some in zip(held, by_block.any(1).tolist(), strict=True) if some}
        listed_whole = seen.whole[z, 0, 0].tolist()[: int(seen.num_whole[z])]
        listed_part = seen.part[z, 0, 0].tolist()[: int(seen.num_part[z])]
        if not real[z]:
            assert listed_whole == listed_part == []
            continue
        assert len(set(listed_whole + listed_part)) == len(listed_whole + listed_part)
        assert set(listed_whole) == whole and set(listed_part) == any_seen - whole


def plainly(
    query: Tensor, key: Tensor, value: Tensor, positions: Tensor, tables: Tensor, window: int | None,
    softcap: float | None, slopes: Tensor | None, scale: float,
) -> Tensor:  # fmt: skip
    """The same tile by tile, over keys and values that are gathered."""
    found = []
    for z, table in enumerate(tables):
        slots = (table[:, None] * B + torch.arange(B)).flatten()
        distance = positions[z, :, None] - torch.arange(W * B)
        sees = (distance >= 0) & (distance < (window or W * B))
        bias = sees[None] if slopes is None else torch.where(sees, -slopes[:, None, None] * distance, -torch.inf)
        mask = Mask(bias=bias[None])
        found.append(
            attention(query[z : z + 1], key[:, :, slots], value[:, :, slots], mask, scale=scale, softcap=softcap)
        )
    return torch.cat(found)


def compare(
    by: Callable[..., Tensor], where: tuple[Tensor, Tensor], seed: int, window: int | None, softcap: float | None,
    slopes: Tensor | None,
) -> None:  # fmt: skip
    """Entries up to 1: scores up to 4 are off by 16 * 4 * 2^-24 in each of the two, weights by four times that and by
    what 48 sums add, 2e-5 in all."""
    positions, tables = where
    generator = torch.Generator().manual_seed(seed)
    query = torch.rand(*positions.shape, H, D, generator=generator).transpose(1, 2) * 2 - 1
    held = torch.rand(2, BLOCKS * B, K, D, generator=generator) * 2 - 1
    key, value = (one.transpose(0, 1)[None] for one in held)
    seen = seen_blocks(positions, tables, torch.ones(len(tables), dtype=torch.bool), BLOCKS, B, window)
    with torch.inference_mode():
        ours = by(
            query, key, value, seen, block_size=B, window=window, scale=D**-0.5, softcap=softcap, slopes=slopes
        )  # fmt: skip
        theirs = plainly(query, key, value, positions, tables, window, softcap, slopes, D**-0.5)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-5)


@given(
    data=st.data(),
    M=st.sampled_from([1, 5, 20]),
    seed=st.integers(0, 2**30),
    window=st.sampled_from([None, 1, 7, 20]),
    softcap=st.sampled_from([None, 2.0]),
    alibi=st.booleans(),
)
@settings(max_examples=40)
def test_a_tile_finds_what_plain_attention_finds(
    data: st.DataObject, M: int, seed: int, window: int | None, softcap: float | None, alibi: bool
) -> None:
    slopes = torch.tensor([0.5, 0.25, 0.125, 0.0625]) if alibi else None
    compare(paged_attention, data.draw(tiles(3, M)), seed, window, softcap, slopes)


@pytest.mark.skipif(not torch.cpu._is_avx2_supported(), reason="PyTorch compiles FlexAttention for AVX2 and GPUs")
@pytest.mark.parametrize(
    ("M", "window", "softcap", "alibi"),
    [(5, 7, 2.0, True), pytest.param(1, None, None, False, marks=pytest.mark.slow)],
)
def test_the_compiled_kernel_finds_it_too(M: int, window: int | None, softcap: float | None, alibi: bool) -> None:
    """One shape each, which takes some seconds to compile."""
    slopes = torch.tensor([0.5, 0.25, 0.125, 0.0625]) if alibi else None

    @given(where=tiles(3, M), seed=st.integers(0, 2**30))
    @settings(max_examples=40)
    def check(where: tuple[Tensor, Tensor], seed: int) -> None:
        compare(compiled(), where, seed, window, softcap, slopes)

    check()


def test_why_it_is_not_used() -> None:
    assert why_not(torch.device("cpu"), 64) == "it is on cpu"
    assert "fewer than 16" in (why_not(torch.device("cuda"), 8) or "")
