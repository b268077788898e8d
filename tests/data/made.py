"""Shards made in memory, so that properties can be tried on many."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pellucid.data.shards import Index, ShardEntry, Shards

Masks = Sequence[Sequence[bool]]


def in_memory(
    documents: Sequence[Sequence[int]], masks: Masks | None = None, per_shard: int = 1000, vocab_size: int = 60_000
) -> Shards:
    """Shards as `open_shards` gives them, of `per_shard` documents each."""
    lengths = np.array([len(document) for document in documents], np.int64)
    groups = range(0, len(documents), per_shard)
    entries, tokens, mask = [], [], []
    for number, start in enumerate(groups):
        part = documents[start : start + per_shard]
        tokens.append(np.concatenate([np.array(document, np.uint16) for document in part]))
        if masks is not None:
            mask.append(np.concatenate([np.array(one, np.uint8) for one in masks[start : start + per_shard]]))
        entries.append(
            ShardEntry(
                name=f"shard-{number:05d}",
                records=len(part),
                documents=len(part),
                tokens=len(tokens[-1]),
                supervised=len(tokens[-1]),
                files={},
            )
        )
    index = Index(fingerprint="", vocab_size=vocab_size, masked=masks is not None, shards=tuple(entries))
    maps = {"tokens": tokens} | ({"mask": mask} if masks is not None else {})
    return Shards(Path("memory"), index, maps, {}, np.cumsum(lengths) - lengths, lengths)


def numbered(lengths: Sequence[int]) -> list[list[int]]:
    """Documents of these lengths in which no token comes twice."""
    starts = np.cumsum([0, *lengths])
    return [list(range(start, start + length)) for start, length in zip(starts, lengths, strict=False)]
