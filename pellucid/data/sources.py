"""From the names in a recipe to records: files, folders, `datasets` folders and the texts that come with the package.

What a file is, its name says: `.jsonl`, `.ndjson`, `.json` (records, or one array of them), `.parquet`, `.arrow`;
anything else is plain text (`text_files.py` says which documents it holds). `.gz`, `.xz` and `.bz2` after that are
unpacked on the way.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from pellucid.data import texts
from pellucid.data.formats import read_record
from pellucid.data.json_files import read_json
from pellucid.data.records import CHANGED, DROPPED, KEPT, BadRecord, Kind, Raw, Record
from pellucid.data.tables import read_arrow, read_parquet
from pellucid.data.text_files import UTF8_MARK, no_text, read_text
from pellucid.errors import InputError, did_you_mean

BUNDLED = "bundled:"
JSON = (".jsonl", ".ndjson", ".json")
OPENERS: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
UNPACKING_ERRORS = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, OSError)
_START = 1 << 12


@dataclass(frozen=True, slots=True)
class File:
    """A file to read, and what messages call it."""

    name: str
    path: Path


def find_files(names: Iterable[str | Path]) -> list[File]:
    """The files that the names of a recipe stand for, those of a folder in order of name, hidden ones left out.

    Raises `InputError` for a name that is nothing, and for a folder with no file in it.
    """
    found = []
    for name in map(str, names):
        if name.startswith(BUNDLED):
            found.append(bundled(name))
            continue
        path = Path(name).expanduser()
        if not path.exists():
            raise InputError(f"{name}: there is no such file or folder")
        files = [path] if not path.is_dir() else list(inside(path))
        if not files:
            raise InputError(f"{name}: there is no file in the folder; hidden ones are left out")
        found += [File(str(file), file) for file in files]
    return found


def bundled(name: str) -> File:
    """A text that comes with the package, such as bundled:state-of-the-union."""
    text = name.removeprefix(BUNDLED)
    if text not in texts.TEXTS:
        there = ", ".join(BUNDLED + one for one in texts.TEXTS)
        raise InputError(f"{name}: there is no such text{did_you_mean(text, texts.TEXTS)}; there are {there}")
    return File(name, Path(texts.__file__).parent / texts.TEXTS[text])


def inside(folder: Path) -> Iterator[Path]:
    """The files of a folder at any depth; of a folder saved by `datasets`, its Arrow files in their order."""
    if (folder / "dataset_dict.json").is_file():
        splits = field_of(folder / "dataset_dict.json", "splits")
        if len(splits) > 1:
            choice = " or ".join(str(folder / split) for split in splits)
            raise InputError(f"{folder}: the data set has the splits {', '.join(splits)}; name one: {choice}")
        folder = folder / splits[0]
    if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
        for entry in field_of(folder / "state.json", "_data_files"):
            if not (folder / entry["filename"]).is_file():
                raise InputError(f"{folder}: the file {entry['filename']} of the data set is missing; copy it again")
            yield folder / entry["filename"]
        return
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_file():
            yield path
        elif path.is_dir():
            if not path.is_symlink():  # which could lead round in a circle
                yield from inside(path)
        elif not path.exists():
            raise InputError(f"{path}: the link leads to a file that is not there; remove it, or bring the file back")


def field_of(path: Path, name: str) -> Any:
    """A field of a file that `datasets` writes."""
    try:
        return json.loads(path.read_text("utf-8"))[name]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path}: this is not what datasets writes there; save the data set again") from None


def read_records(
    paths: Iterable[str | Path],
    *,
    wanted: Kind | None = None,
    skip_bad: bool = False,
    counts: Counter[str] | None = None,
) -> Iterator[Record]:
    """The records of these files in their order, each in the normal form of its kind; no file is ever held whole.

    wanted: the only kind that is taken. counts: how many were kept by format, dropped by reason, changed by what was
    changed, under the keys "kept: ...", "dropped: ...", "changed: ...".
    Raises `InputError` naming file, line, what was seen and what was expected, at the first record that is bad, unless
    `skip_bad`; and where no record is left.
    """
    counts = Counter() if counts is None else counts
    files = find_files(paths)
    kept = 0
    for item in examine(files, wanted, counts):
        if isinstance(item, BadRecord):
            if not skip_bad:
                raise InputError(f"{item}; or leave such records out, counted, with data.skip_bad=true")
            counts[DROPPED + item.reason] += 1
        else:
            kept += 1
            counts[KEPT + item.format] += 1
            yield item
    if not kept:
        reasons = ", ".join(f"{reason.removeprefix(DROPPED)}: {n:,}" for reason, n in counts.items() if n)
        raise InputError(f"{files[0].name}: no record is left to train on ({reasons}); see pellucid data check")


def examine(files: Iterable[File], wanted: Kind | None, counts: Counter[str]) -> Iterator[Record | BadRecord]:
    """Every record of the files, or what is wrong with it. All records of a file have one format."""
    for file in files:
        first: Record | None = None
        for raw in read_raw(file, counts):
            record = read_record(raw, wanted, counts) if isinstance(raw, Raw) else raw
            if isinstance(record, Record):
                first = first or record
                if record.format != first.format:
                    seen = f"the format is {record.format}, but that of {first.place} is {first.format}"
                    record = BadRecord(
                        record.place, "mixed formats", f"{seen}; expected one format a file; split the file"
                    )
            yield record


def read_raw(file: File, counts: Counter[str]) -> Iterator[Raw | BadRecord]:
    """The values that a file holds, as they are."""
    name, suffixes = file.name, [suffix.lower() for suffix in file.path.suffixes[-2:]]
    packed = suffixes.pop() if suffixes and suffixes[-1] in OPENERS else ""
    kind = suffixes[-1] if suffixes else ""
    try:
        if kind == ".parquet" and not packed:
            yield from read_parquet(file.path, name)
        elif kind == ".arrow" and not packed:
            yield from read_arrow(file.path, name)
        else:
            yield from read_stream(file, packed, kind in JSON, counts)
    except BadRecord as error:
        yield error
    except UNPACKING_ERRORS as error:
        if not packed:
            raise
        said = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        yield BadRecord(
            name, f"broken {packed} file", f"the file cannot be unpacked as {packed} ({said}); copy or make it again"
        )


def read_stream(file: File, packed: str, is_json: bool, counts: Counter[str]) -> Iterator[Raw | BadRecord]:
    """The values of a file of text or JSON."""
    with ExitStack() as stack:
        stream = cast(BinaryIO, stack.enter_context(OPENERS[packed](file.path) if packed else file.path.open("rb")))
        start = stream.read(_START)
        if bad := no_text(start, file.name):
            yield bad
            return
        marked = start.startswith(UTF8_MARK)
        if marked:
            counts[f"{CHANGED}byte-order mark left out"] += 1
        stream.seek(len(UTF8_MARK) if marked else 0)
        if is_json:
            yield from read_json(stream, file.name, start.removeprefix(UTF8_MARK))
        else:
            yield from read_text(stream, file.name, counts)
