"""Token shards: tokenised documents on disk, mapped into memory, checksummed, read by place.

A folder of shards holds, numbers little endian:

    shard-00000.tokens   the documents' tokens end to end, uint16, or uint32 for a vocabulary past 65,536
    shard-00000.ends     where each document ends, in tokens, int64
    shard-00000.mask     one byte a token, 1 where it is learnt from       } of conversations only: in a text,
    shard-00000.places   where each document came from, a line of UTF-8    } every token is learnt from
    index.json           what there is, with sizes and checksums; written last
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from pellucid.checkpoints.manifest import checksum
from pellucid.errors import InputError, PellucidError

Ints = npt.NDArray[np.int64]

VERSION = 1
INDEX = "index.json"
AGAIN = "remove the folder and run the same command, which makes it again"


class FileEntry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int  # bytes
    crc32: int


class ShardEntry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    records: int  # of the source that went into it, the dropped ones included
    documents: int
    tokens: int
    supervised: int  # tokens that are learnt from
    files: dict[str, FileEntry]  # by their ending: tokens, ends, mask, places


class Index(BaseModel):
    """What `index.json` holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = VERSION
    fingerprint: str  # of the source, the tokenizer and how documents were made
    vocab_size: int
    masked: bool
    shards: tuple[ShardEntry, ...] = ()
    counts: dict[str, int] = {}  # of records: kept by format, dropped by reason, changed by what was changed

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        return dtype_for(self.vocab_size)


def dtype_for(vocab_size: int) -> np.dtype[np.unsignedinteger]:
    """What tokens of such a vocabulary are stored as."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


@dataclass(frozen=True)
class Shards:
    """Documents of tokens on disk. `select` gives some of them, which is as good.

    starts: (D,), the place of each document's first token among all tokens of the folder. lengths: (D,), in tokens.
    """

    folder: Path
    index: Index
    maps: dict[str, list[npt.NDArray[np.unsignedinteger]]]  # tokens and mask, each one array a shard
    stats: dict[Path, tuple[int, ...]]
    starts: Ints
    lengths: Ints

    @property
    def fingerprint(self) -> str:
        return self.index.fingerprint

    @cached_property
    def content(self) -> str:
        """A digest of the tokens themselves: equal where a run would see the same, whatever it was made from."""
        files = [entry.files for entry in self.index.shards]
        made = [(kind, file.size, file.crc32) for shard in files for kind, file in shard.items() if kind != "places"]
        return hashlib.sha256(repr(made).encode()).hexdigest()

    @property
    def masked(self) -> bool:
        """Whether only some tokens are learnt from."""
        return self.index.masked

    @property
    def num_documents(self) -> int:
        return len(self.starts)

    @cached_property
    def num_tokens(self) -> int:
        return int(self.lengths.sum())

    @cached_property
    def bounds(self) -> Ints:
        """(shards + 1,), the place of each shard's first token, and the end."""
        return np.cumsum([0, *(shard.tokens for shard in self.index.shards)], dtype=np.int64)

    def tokens(self, places: Ints) -> Ints:
        """The tokens at these places of the folder: of any shape, to int64."""
        return self._gather("tokens", places)

    def supervised(self, places: Ints) -> npt.NDArray[np.bool_]:
        """Whether the tokens at these places are learnt from."""
        if not self.masked:
            return np.ones(places.shape, np.bool_)
        return self._gather("mask", places).astype(np.bool_)

    def document(self, number: int) -> tuple[Ints, npt.NDArray[np.bool_]]:
        """The tokens of a document, and which of them are learnt from."""
        places = self.starts[number] + np.arange(self.lengths[number])
        return self.tokens(places), self.supervised(places)

    def place(self, number: int) -> str:
        """Where a document came from, for a message: file and line, where that is known."""
        start = int(self.starts[number])
        shard = int(np.searchsorted(self.bounds, start, "right")) - 1
        entry = self.index.shards[shard]
        ends = np.fromfile(self.folder / f"{entry.name}.ends", "<i8")
        inside = int(np.searchsorted(ends, start - self.bounds[shard], "right"))
        if self.masked:
            lines = (self.folder / f"{entry.name}.places").read_text(encoding="utf-8").split("\n")
            if lines[inside]:
                return lines[inside]
        return f"document {inside + sum(before.documents for before in self.index.shards[:shard]) + 1}"

    def select(self, starts: Ints, lengths: Ints) -> Shards:
        """The same folder with only these documents or parts of documents."""
        return replace(self, starts=starts, lengths=lengths)

    def check_unchanged(self) -> None:
        """`PellucidError` if a file is not as it was when the shards were opened. Cheap: looks at no content."""
        for path, then in self.stats.items():
            if _stat(path) != then:
                raise PellucidError(
                    f"{path} was changed or removed while it was being read, so what comes next cannot be trusted: "
                    "stop what changes it, then run the same command again"
                )

    def _gather(self, kind: str, places: Ints) -> Ints:
        maps = self.maps[kind]
        if len(maps) == 1:
            return maps[0][places].astype(np.int64)
        shard = np.searchsorted(self.bounds, places, "right") - 1
        values = np.empty(places.shape, np.int64)
        for number in np.unique(shard):
            here = shard == number
            values[here] = maps[number][places[here] - self.bounds[number]]
        return values


def open_shards(folder: str | Path, *, verify: bool = True) -> Shards:
    """The shards in `folder`; with `verify`, every file is read once and its checksum compared.

    Raises `InputError` if the folder holds no finished shards or another version's, `PellucidError` for a file that is
    missing, cut short or changed, by name.
    """
    folder = Path(folder)
    index = read_index(folder / INDEX)
    stats = {}
    for shard in index.shards:
        for ending, entry in shard.files.items():
            path = folder / f"{shard.name}.{ending}"
            stats[path] = _stat(path)
            _check(path, entry, stats[path], verify)
    starts, lengths = _documents(folder, index)
    kinds = ("tokens", "mask") if index.masked else ("tokens",)
    maps = {kind: [_map(folder / f"{shard.name}.{kind}", index, kind) for shard in index.shards] for kind in kinds}
    return Shards(folder, index, maps, stats, starts, lengths)


def read_index(path: Path) -> Index:
    """Raises `InputError` where there is none, and where it is damaged or of another version."""
    try:
        index = Index.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path.parent}: there are no finished shards here ({path.name} is missing)") from None
    except ValidationError:
        raise InputError(f"{path}: this is no index of shards of version {VERSION}; {AGAIN}") from None
    if index.version != VERSION:
        raise InputError(f"{path}: version {index.version} of the format, and this program reads {VERSION}; {AGAIN}")
    return index


def split(shards: Shards, fraction: float, seed: int) -> tuple[Shards, Shards | None]:
    """Training and validation documents: a pure function of the documents, `fraction` and `seed`.

    `fraction` of the documents are drawn for validation, at least one conversation. A text of few documents (a book)
    gives the last part of each document instead. fraction 0: no validation.
    Raises `InputError` for a single conversation.
    """
    from pellucid.data.order import permutation

    if fraction == 0:
        return shards, None
    D = shards.num_documents
    if not shards.masked and D * fraction < 1:
        return _split_each(shards, fraction)
    if D < 2:
        raise InputError(
            f"{shards.folder}: a single conversation cannot be split: give data.validation, "
            "or data.validation_fraction=0"
        )
    count = min(max(round(D * fraction), 1), D - 1)
    chosen = np.zeros(D, np.bool_)
    chosen[permutation(D, "split", seed)(np.arange(count))] = True
    one, other = (shards.select(shards.starts[which], shards.lengths[which]) for which in (~chosen, chosen))
    return one, other


def _split_each(shards: Shards, fraction: float) -> tuple[Shards, Shards | None]:
    last = np.ceil(shards.lengths * fraction).astype(np.int64)
    first = shards.lengths - last
    training = shards.select(shards.starts[first > 0], first[first > 0])
    return training, shards.select(shards.starts + first, last)


def _check(path: Path, entry: FileEntry, stat: tuple[int, ...], verify: bool) -> None:
    if not stat:
        raise PellucidError(f"{path}: the file is missing; {AGAIN}")
    if stat[0] != entry.size:
        raise PellucidError(f"{path}: the file has {stat[0]} bytes and the index says {entry.size}; {AGAIN}")
    if verify and checksum(path) != entry.crc32:
        raise PellucidError(f"{path}: the file is damaged (its checksum is not that of the index); {AGAIN}")


def _documents(folder: Path, index: Index) -> tuple[Ints, Ints]:
    """Where each document starts, over all shards, and its length."""
    starts, lengths, before = [], [], 0
    for shard in index.shards:
        ends = np.fromfile(folder / f"{shard.name}.ends", "<i8")
        length = np.diff(ends, prepend=0)
        if len(ends) != shard.documents or ends[-1] != shard.tokens or (length <= 0).any():
            raise PellucidError(f"{folder / shard.name}.ends: it does not fit the shard's tokens; {AGAIN}")
        starts.append(ends - length + before)
        lengths.append(length)
        before += shard.tokens
    if not lengths:
        raise InputError(f"{folder}: the shards hold no document")
    return np.concatenate(starts), np.concatenate(lengths)


def _map(path: Path, index: Index, kind: str) -> npt.NDArray[np.unsignedinteger]:
    return np.asarray(np.memmap(path, index.dtype if kind == "tokens" else np.uint8, "r"))


def _stat(path: Path) -> tuple[int, ...]:
    """Size, time of change and identity; () if there is no such file."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return ()
    return found.st_size, found.st_mtime_ns, found.st_ino
