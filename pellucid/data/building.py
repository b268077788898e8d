"""Building token shards: documents in, whole shards out, going on where a killed run stopped.

Documents come in blocks of a fixed number of characters and shards end where blocks end, so that the shards do not
depend on how many processes tokenise. After each shard `building.json` says what is on disk; a run that starts again
reads the source from its beginning, and tokenises only what is not in whole shards yet.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pellucid.checkpoints.atomic import atomic_file
from pellucid.data.records import DROPPED
from pellucid.data.shards import INDEX, FileEntry, Index, ShardEntry, Shards, dtype_for, open_shards, read_index
from pellucid.errors import InputError

Say = Callable[[str], None]

BUILDING = "building.json"
SHARD_TOKENS = 1 << 25
_DOCUMENTS = 1024  # of a block, where they are given one by one
_OWN_FILES = (INDEX, BUILDING, "shard-*.tokens", "shard-*.ends", "shard-*.mask", "shard-*.places", ".shard-*")


class Document(NamedTuple):
    """Tokens, whether each is learnt from (None: all are), and where it came from, for messages."""

    ids: Sequence[int]
    mask: Sequence[bool] | None = None
    place: str = ""


@dataclass
class Block:
    """Documents end to end. tokens: (n,); ends: (D,) int64, where each document ends; mask: (n,) uint8 or None.

    places: where each came from. records: how many records of the source it is made of, those dropped included.
    counts: of records by what became of them, as `read_records` counts.
    """

    tokens: npt.NDArray[np.unsignedinteger]
    ends: npt.NDArray[np.int64]
    mask: npt.NDArray[np.uint8] | None = None
    places: Sequence[str] = ()
    records: int = 0
    counts: Counter[str] = field(default_factory=Counter)


def build_shards(
    documents: Iterable[Document],
    folder: str | Path,
    *,
    vocab_size: int,
    masked: bool = False,
    fingerprint: str = "",
    shard_tokens: int = SHARD_TOKENS,
) -> Shards:
    """Shards of documents that are tokens already; plain tuples `(ids,)` and `(ids, mask)` will do.

    masked: whether the documents have masks. Raises `InputError` for an id past `vocab_size` and when there is no
    document; `PellucidError` from the disk.
    """
    writer = ShardWriter(
        folder, vocab_size=vocab_size, masked=masked, fingerprint=fingerprint, shard_tokens=shard_tokens
    )
    if writer.finished:
        return open_shards(folder)
    rest = islice(documents, writer.records, None)
    while batch := [Document(*document) for document in islice(rest, _DOCUMENTS)]:
        writer.add(block_of(batch, vocab_size))
    return writer.finish()


def block_of(documents: Sequence[Document], vocab_size: int) -> Block:
    """`documents` as one block; those without a token are dropped. Raises `InputError` for an id past `vocab_size`."""
    kept = [document for document in documents if len(document.ids)]
    lengths = [len(document.ids) for document in kept]
    tokens = np.fromiter(chain.from_iterable(document.ids for document in kept), np.int64, sum(lengths))
    if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab_size:
        raise InputError(
            f"the token {int(tokens.max())} is past the vocabulary of {vocab_size}: "
            "give the vocabulary size of the tokenizer that made it"
        )
    masks = [document.mask for document in kept if document.mask is not None]
    if masks and list(map(len, masks)) != lengths:
        raise InputError("a document has no mask of its own length: say for each of its tokens if it is learnt from")
    empty = len(documents) - len(kept)
    return Block(
        tokens.astype(dtype_for(vocab_size)),
        np.cumsum(lengths, dtype=np.int64),
        np.fromiter(chain.from_iterable(masks), np.uint8, len(tokens)) if masks else None,
        [document.place for document in kept],
        len(documents),
        Counter({f"{DROPPED}no token": empty} if empty else {}),
    )


class ShardWriter:
    """Writes blocks as shards into `folder`, which is taken up where an earlier run with equal arguments left it.

    Raises `InputError` if the folder holds other things than shards. `say` is told when earlier shards are of no use.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        vocab_size: int,
        masked: bool,
        fingerprint: str,
        shard_tokens: int = SHARD_TOKENS,
        say: Say | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.shard_tokens = shard_tokens
        self.index = Index(fingerprint=fingerprint, vocab_size=vocab_size, masked=masked)
        self.finished = False
        self._blocks: list[Block] = []
        self._take_up(say)

    @property
    def records(self) -> int:
        """How many records of the source are in whole shards."""
        return sum(shard.records for shard in self.index.shards)

    def add(self, block: Block) -> None:
        """Takes in a block, and writes a shard when there is enough for one."""
        self._blocks.append(block)
        if sum(len(block.tokens) for block in self._blocks) >= self.shard_tokens:
            self._write_shard()

    def finish(self, counts: Counter[str] | None = None) -> Shards:
        """Writes what is left, then the index. `counts`: of records before they came here, as `read_records` counts."""
        if self._blocks:
            self._write_shard()
        total = self._counted(counts or Counter())
        if not self.index.shards:
            why = ", ".join(f"{reason}: {count}" for reason, count in total.items() if reason.startswith(DROPPED))
            raise InputError(f"there is no document to train on{f' ({why})' if why else ''}: give more text")
        self.index = self.index.model_copy(update={"counts": total})
        self._write_index(INDEX)
        (self.folder / BUILDING).unlink(missing_ok=True)
        return open_shards(self.folder, verify=False)

    def _counted(self, *more: Counter[str]) -> dict[str, int]:
        total = Counter(self.index.counts)
        for counts in more:
            total.update(counts)
        return {name: total[name] for name in sorted(total) if total[name]}

    def _take_up(self, say: Say | None) -> None:
        """Finds what an earlier run left; what does not belong to this one is removed."""
        if not self.folder.exists():
            return
        entries = sorted(self.folder.iterdir()) if self.folder.is_dir() else [self.folder]
        for entry in entries:
            if entry == self.folder or not any(entry.match(pattern) for pattern in _OWN_FILES):
                raise InputError(f"{entry} is no part of token shards: choose another folder for them, or remove it")
        for name in (INDEX, BUILDING):
            found = self._earlier(self.folder / name)
            if found is not None:
                self.index, self.finished = found, name == INDEX
                return
        if entries and say is not None:
            say(f"{self.folder}: the shards there are of another source, tokenizer or version, so they are made again")
        for entry in entries:
            entry.unlink()

    def _earlier(self, path: Path) -> Index | None:
        """An index that belongs to this source, tokenizer and version."""
        try:
            found = read_index(path)
        except InputError:
            return None
        wanted = (self.index.fingerprint, self.index.vocab_size, self.index.masked)
        return found if (found.fingerprint, found.vocab_size, found.masked) == wanted else None

    def _write_shard(self) -> None:
        blocks, self._blocks = self._blocks, []
        self.index = self.index.model_copy(update={"counts": self._counted(*(block.counts for block in blocks))})
        tokens = np.concatenate([block.tokens for block in blocks])
        if not len(tokens):
            return
        name = f"shard-{len(self.index.shards):05d}"
        before = np.cumsum([0, *(len(block.tokens) for block in blocks)])
        ends = np.concatenate([block.ends + start for block, start in zip(blocks, before, strict=False)])
        contents: dict[str, memoryview | bytes] = {"tokens": tokens.data, "ends": ends.astype("<i8").data}
        supervised = len(tokens)
        if self.index.masked:
            mask = np.concatenate([_mask_of(block) for block in blocks])
            supervised = int(mask.sum())
            contents["mask"] = mask.data
            contents["places"] = "\n".join(_line(place) for block in blocks for place in block.places).encode()
        shard = ShardEntry(
            name=name,
            records=sum(block.records for block in blocks),
            documents=len(ends),
            tokens=len(tokens),
            supervised=supervised,
            files={ending: self._write(f"{name}.{ending}", content) for ending, content in contents.items()},
        )
        self.index = self.index.model_copy(update={"shards": (*self.index.shards, shard)})
        self._write_index(BUILDING)

    def _write(self, name: str, content: memoryview | bytes) -> FileEntry:
        with atomic_file(self.folder / name) as path:
            path.write_bytes(content)
        return FileEntry(size=memoryview(content).nbytes, crc32=zlib.crc32(content))

    def _write_index(self, name: str) -> None:
        with atomic_file(self.folder / name) as path:
            path.write_text(self.index.model_dump_json(indent=1), encoding="utf-8")


def _mask_of(block: Block) -> npt.NDArray[np.uint8]:
    return np.ones(len(block.tokens), np.uint8) if block.mask is None else block.mask


def _line(place: str) -> str:
    return place.replace("\n", " ")
