"""Files and folders of text, read in parts: what a tokenizer is trained on."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from pellucid.errors import InputError

_PART = 1 << 20  # bytes
_NEAR_END = 1 << 12
# Where a file may be cut so that its words, and for the patterns at hand its pre-tokens, stay whole.
_BORDERS = [re.compile(rb"[A-Za-z](?= [A-Za-z])"), re.compile(rb"[^\s]\n(?=[^\s/])"), re.compile(rb"(?=[^\x80-\xbf])")]


def files_of(paths: Iterable[Path]) -> list[Path]:
    """The files themselves, and those in folders, hidden ones left out, in order of name.

    Raises `InputError` for a path that does not exist and for a file or folder with nothing in it.
    """
    files = []
    for path in paths:
        if not path.exists():
            raise InputError(f"{path}: there is no such file or folder")
        found = [path] if path.is_file() else _inside(path)
        if not any(file.stat().st_size for file in found):
            raise InputError(f"{path}: there is no text in it")
        files += found
    return files


def read_texts(files: Iterable[Path]) -> Iterator[str]:
    """The text of each file, as it is, in parts of about a megabyte, cut between words.

    Raises `InputError` that names file and offset where it is not text in UTF-8.
    """
    for file in files:
        with file.open("rb") as stream:
            offset, rest = 0, b""
            while part := stream.read(_PART):
                rest += part
                end = _cut(rest) if len(part) == _PART else len(rest)
                yield _decode(rest[:end], file, offset)
                offset, rest = offset + end, rest[end:]
            if rest:
                yield _decode(rest, file, offset)


def _inside(folder: Path) -> list[Path]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return [file for file in files if not any(name.startswith(".") for name in file.relative_to(folder).parts)]


def _cut(part: bytes) -> int:
    """The last place near the end of `part` where text may be cut."""
    start = len(part) - _NEAR_END
    for border in _BORDERS:
        if found := list(border.finditer(part, start)):
            return found[-1].end()
    return len(part)


def _decode(part: bytes, file: Path, offset: int) -> str:
    if (zero := part.find(b"\0")) >= 0:
        raise InputError(f"{file}: the byte at {offset + zero} is 0, so this is no text; leave the file out")
    try:
        return part.decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{file}: the byte at {offset + error.start} is {part[error.start]:#04x}, which is not UTF-8 there; "
            "convert the file to UTF-8 or leave it out"
        ) from None
