"""Attention over a paged cache by PyTorch's FlexAttention: the sequences of a step in one kernel, nothing copied.

After PagedAttention (Kwon et al. 2023, section 4.3) and FlexAttention (Dong et al. 2024, "Flex Attention: A Programming
Model for Generating Optimized Attention Kernels", section 5.2: a block mask that tells where a page lies).
Z tiles of M queries, each tile of one sequence; H query heads, K key-value heads, D head dimension; B tokens a block,
S = blocks * B slots, W blocks of a sequence.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

FAR = 1 << 20  # the place of a block that a sequence does not hold: behind every text
QUERIES = 128  # of a block of the mask: what FlexAttention's kernels divide into tiles of their own
NARROWEST = 16  # entries of a head that its kernels for GPUs take
COMPILED = 128  # shapes that one process may meet


class Seen(NamedTuple):
    """What the queries of each tile see. All int32.

    positions: (Z, M), of the queries. places: (Z, blocks), at which place of the tile's sequence each block stands, or
    FAR. part, whole: (Z, 1, 1, blocks), the blocks that some of the queries see a part of, and those that all see
    whole; num_part, num_whole: (Z, 1, 1), how many of them count.
    """

    positions: Tensor
    places: Tensor
    num_part: Tensor
    part: Tensor
    num_whole: Tensor
    whole: Tensor


def seen_blocks(
    positions: Tensor, tables: Tensor, real: Tensor, blocks: int, block_size: int, window: int | None
) -> Seen:
    """What the tiles see, from the tables of their sequences: with no loop, and nothing is read back from a GPU.

    positions: (Z, M), which grow along a tile. tables: (Z, W), the blocks of each tile's sequence in their order;
    behind its last one any. real: (Z,), False for tiles that fill up the step and see nothing. blocks: of the whole
    cache.
    """
    B, W = block_size, tables.shape[1]
    first, last = positions[:, 0], positions[:, -1]
    # Block j holds positions j B to j B + B - 1. Query t sees positions max(0, t - window + 1) to t.
    begin = torch.zeros_like(first) if window is None else (first - window + 1).clamp(min=0) // B
    end = last // B + 1
    whole_begin = begin if window is None else torch.maximum(begin, ((last - window + 1).clamp(min=0) + B - 1) // B)
    whole_end = torch.maximum(whole_begin, (first + 1) // B)
    before = whole_begin - begin  # blocks in part on this side; the others stand behind those that are seen whole
    number = torch.arange(W, device=tables.device)
    whole = whole_begin[:, None] + number
    part = torch.where(number < before[:, None], begin[:, None] + number, (whole_end - before)[:, None] + number)
    places = torch.full((len(tables), blocks), FAR, dtype=torch.int32, device=tables.device)
    places.scatter_reduce_(1, tables, number.int().expand_as(tables), "amin")

    def listed(which: Tensor) -> Tensor:
        found = tables.gather(1, which.clamp(max=W - 1)).int()
        return F.pad(found, (0, blocks - W))[:, None, None]  # FlexAttention wants a list as long as there are blocks

    def counted(how_many: Tensor) -> Tensor:
        return (how_many * real).int()[:, None, None]

    return Seen(
        positions.int(), places, counted(before + end - whole_end), listed(part), counted(whole_end - whole_begin),
        listed(whole),
    )  # fmt: skip


def paged_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    seen: Seen,
    *,
    block_size: int,
    window: int | None,
    scale: float,
    softcap: float | None,
    slopes: Tensor | None,
) -> Tensor:
    """softmax(Q K^T * scale) V of each tile over what it sees: query (Z, H, M, D) -> (Z, H, M, D).

    key, value: (1, K, S, D), of any strides but the last. softcap: as for `operations.attention`. slopes: ALiBi's,
    (H,). What tiles give that see nothing is not to be used.
    """

    def away(z: Tensor, m: Tensor, slot: Tensor) -> Tensor:  # from a query back to what stands in a slot
        return seen.positions[z, m] - (seen.places[z, slot // block_size] * block_size + slot % block_size)

    def sees(z: Tensor, _h: Tensor, m: Tensor, slot: Tensor) -> Tensor:
        distance = away(z, m, slot)
        return distance >= 0 if window is None else (distance >= 0) & (distance < window)

    def change(score: Tensor, z: Tensor, h: Tensor, m: Tensor, slot: Tensor) -> Tensor:
        if softcap is not None:
            score = softcap * torch.tanh(score / softcap)
        return score if slopes is None else score - slopes[h] * away(z, m, slot)

    mask = BlockMask.from_kv_blocks(
        seen.num_part, seen.part, seen.num_whole, seen.whole, BLOCK_SIZE=(QUERIES, block_size), mask_mod=sees,
        seq_lengths=(query.shape[2], key.shape[2]), compute_q_blocks=False,
    )  # fmt: skip
    found = flex_attention(
        query, key, value, None if softcap is None and slopes is None else change, mask, scale,
        enable_gqa=key.shape[1] < query.shape[1], kernel_options=tiling(query, block_size),
    )  # fmt: skip
    assert isinstance(found, Tensor)
    return found


def tiling(query: Tensor, block_size: int) -> Any:
    """Sizes of a GPU kernel's own tiles: its keys must divide a block, its queries `QUERIES`."""
    M, D = query.shape[-2:]
    large = D * query.dtype.itemsize > 512  # bytes of a head, from which on larger tiles do not fit a GPU's fast memory
    options: dict[str, Any] = {"BLOCK_N": math.gcd(16 if large else 64, block_size)}
    # A single query goes by the kernel that shares out a long text (FlexDecoding), where that can be.
    return options if M == 1 else options | {"BLOCK_M": 32 if large else 64, "FORCE_USE_FLEX_ATTENTION": True}


@cache
def compiled() -> Callable[..., Tensor]:
    """`paged_attention` as one kernel, compiled for each shape as it is first met."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, COMPILED)
    made: Callable[..., Tensor] = torch.compile(paged_attention, fullgraph=True, dynamic=False)
    return made


def why_not(device: torch.device, head_dim: int) -> str | None:
    """Why this kernel is not used on `device`, in a few words; None where it is."""
    if device.type != "cuda":
        return f"it is on {device.type}"
    if head_dim < NARROWEST:
        return f"its heads have {head_dim} entries, fewer than {NARROWEST}"
    from torch.utils._triton import has_triton

    return None if has_triton() else "there is no Triton to compile it with"
