"""How many blocks of cache fit into the memory that is really free."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from pellucid.errors import InputError
from pellucid.models.config import ModelConfig

PART = 0.5  # of the free memory, at most: activations, other programs and what comes later want theirs
GROUP = Path("/sys/fs/cgroup")  # what a container may use at most


def bytes_a_token(config: ModelConfig, dtype: torch.dtype) -> int:
    """Of keys and values, over all layers. dtype int8: with a scale each, see `PagedCache`."""
    size = config.head_dim * dtype.itemsize + (4 if dtype == torch.int8 else 0)
    return 2 * config.num_layers * config.num_kv_heads * size


def widened_bytes_a_token(config: ModelConfig, dtype: torch.dtype) -> int:
    """What a step on a GPU takes, at most, for each token of a cache of bytes, while it widens those of one layer.

    Keys and values as bytes and in `dtype`, and one of the two in float32 on the way; twice, since their blocks are
    filled up to a power of two.
    """
    return 2 * config.num_kv_heads * config.head_dim * (2 + 2 * dtype.itemsize + 4)


def free_memory(device: torch.device) -> int:
    """Bytes that can be had now, without anything being swapped out."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    else:
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return min([free, *_left_to_group()])


def _left_to_group() -> list[int]:
    """What the control group of this process may still take; none where there is no limit."""
    try:
        limit, used = ((GROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return []
    return [] if limit == "max" else [max(0, int(limit) - int(used))]


def blocks_that_fit(
    config: ModelConfig, dtype: torch.dtype, device: torch.device, block_size: int, most: int, beside: int = 0
) -> int:
    """How many blocks, `most` at most. Raises `InputError`, with the numbers, where not even a few fit.

    beside: bytes a token of another cache that is to have as many blocks, such as a draft model's.
    """
    a_block = block_size * (bytes_a_token(config, dtype) + beside)
    free = free_memory(device)
    fitting = int(PART * free) // a_block
    if fitting < 4:
        raise InputError(
            f"a block of {block_size} tokens takes {a_block / 2**20:.1f} MiB of cache, and in half of the "
            f"{free / 2**20:.0f} MiB that are free not even four find room: free some memory, or take a smaller model"
        )
    return min(fitting, most)
