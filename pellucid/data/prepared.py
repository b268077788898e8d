"""From the names in a recipe to shards: what the training commands call."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from pellucid.data.building import SHARD_TOKENS, Say, ShardWriter
from pellucid.data.documents import KINDS, tokenise
from pellucid.data.preferences import distinct
from pellucid.data.records import Kind
from pellucid.data.shards import VERSION, Shards, open_shards
from pellucid.data.sources import find_files, read_records
from pellucid.errors import PellucidError
from pellucid.tokenizer.tokenizer import Tokenizer

Progress = Callable[[str, int, int | None], None]
"""`(phase, done, of)`: "tokenising" in characters, of about as many as the files have bytes."""


def prepared(
    names: Sequence[str | Path],
    tokenizer: Tokenizer,
    folder: str | Path,
    wanted: Kind,
    *,
    skip_bad: bool = False,
    workers: int | None = None,
    shard_tokens: int = SHARD_TOKENS,
    progress: Progress | None = None,
    say: Say | None = None,
) -> Shards:
    """The shards in `folder` of the files that `names` stand for; built there unless they are there already.

    A run that is killed meanwhile goes on from whole shards when it starts again. Where the files, the tokenizer or the
    format have changed since, everything is made again, and `say` is told. workers: processes that tokenise (None: as
    many as pay); the shards do not depend on it.
    Raises `InputError` that names file and line for what cannot be used, unless `skip_bad`, and `PellucidError` for
    damaged shards, for a disk that refuses, and for files that change while they are read.
    """
    fingerprint = fingerprint_of(names, tokenizer, wanted, skip_bad)
    writer = ShardWriter(
        folder,
        vocab_size=tokenizer.vocab_size,
        masked=KINDS[wanted].masked,
        fingerprint=fingerprint,
        shard_tokens=shard_tokens,
        say=say,
    )
    if writer.finished:
        return open_shards(folder)
    size, done = sum(file.path.stat().st_size for file in find_files(names)), 0
    counts: Counter[str] = Counter()
    records = read_records(names, wanted=wanted, skip_bad=skip_bad, counts=counts)
    if wanted == "preference":
        records = distinct(records, counts)
    for block, characters in tokenise(
        records, tokenizer, wanted, skip=writer.records, skip_bad=skip_bad, workers=workers
    ):
        writer.add(block)
        done += characters
        if progress is not None:
            progress("tokenising", done, size)
    if fingerprint_of(names, tokenizer, wanted, skip_bad) != fingerprint:
        raise PellucidError(f"{names[0]}: the source changed while it was read: run the same command again")
    return writer.finish(counts)


def fingerprint_of(names: Sequence[str | Path], tokenizer: Tokenizer, wanted: str, skip_bad: bool) -> str:
    """A digest of what shards are made from: the files' names, sizes and times of change, the tokenizer, the format.

    Raises `InputError` for a name that is nothing.
    """
    files = [(file.name, file.path.stat()) for file in find_files(names)]
    made_from = {
        "version": VERSION,
        "wanted": wanted,
        "skip_bad": skip_bad,
        "files": [(name, stat.st_size, stat.st_mtime_ns) for name, stat in files],
        "tokenizer": [tokenizer.definition, tokenizer.config, tokenizer.templates, tokenizer.more_stops],
    }
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
