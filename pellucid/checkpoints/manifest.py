"""What tells a whole checkpoint of a run from a broken one: `manifest.json`, written last, names every file.

<run>/checkpoints/step-N/manifest.json      {"files": {"config.json": {"size": 812, "crc32": 3610936153}, ...}}
"""

from __future__ import annotations

import json
import re
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

MANIFEST, CHECKPOINTS = "manifest.json", "checkpoints"
CHUNK = 2**22  # bytes read at a time


def write_manifest(folder: Path) -> None:
    """Names all files that are in `folder`, with sizes in bytes and CRC-32 (zlib's)."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "crc32": checksum(path)} for path in paths
    }
    (folder / MANIFEST).write_text(json.dumps({"files": files}, indent=2) + "\n", encoding="utf-8")


def checksum(path: Path) -> int:
    """The CRC-32 of a file."""
    found = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            found = zlib.crc32(chunk, found)
    return found


def damage(folder: Path, *, contents: bool) -> str | None:
    """What is wrong with a checkpoint, in a few words; None when it is whole.

    contents: read every file and compare checksums too, not the sizes alone.
    """
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = {str(name): (int(entry["size"]), int(entry["crc32"])) for name, entry in content["files"].items()}
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is not what was written"
    for name, (size, crc32) in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size:,} bytes instead of {size:,}"
        if contents and checksum(path) != crc32:
            return f"{name} is not what was written (its checksum differs)"
    return None


def checkpoints(run: Path) -> list[tuple[int, Path]]:
    """The checkpoints of a run folder as (step, folder), the newest first, whole or not."""
    folders = (run / CHECKPOINTS).glob("step-*")
    steps = ((re.fullmatch(r"step-(\d+)", folder.name), folder) for folder in folders if folder.is_dir())
    return sorted(((int(step[1]), folder) for step, folder in steps if step), reverse=True)


def whole_checkpoints(run: Path, *, contents: bool) -> Iterator[tuple[int, Path]]:
    """The whole ones among `checkpoints(run)`, the newest first. A warning tells of each that is passed over, and why.

    contents: as for `damage`.
    """
    for step, folder in checkpoints(run):
        wrong = damage(folder, contents=contents)
        if wrong is None:
            yield step, folder
        else:
            warnings.warn(f"{folder} is passed over, because it is not whole: {wrong}", stacklevel=2)
