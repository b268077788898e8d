"""Writing whole or not at all: into a temporary place beside the target, to the disk, then renamed.

Whoever is killed on the way leaves what was there before, and a temporary folder that the next save there removes.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pellucid.errors import InputError, PellucidError

_EXCHANGE = 2  # RENAME_EXCHANGE of renameat2(2), Linux
PARTIAL = ".partial-"  # in the name of what is being written; the writer's machine and process follow
ASIDE = ".old"  # ends the name of a folder that makes place for its successor
_HERE = -100  # AT_FDCWD


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A new folder to fill, which takes `target`'s place when the block ends well. A folder that was there is removed.

    Raises `PellucidError` when the disk refuses (it is full, say); `target` is then as it was.
    """
    temporary = _temporary(target)
    with _all_or_nothing(target, temporary):
        temporary.mkdir(parents=True)
        yield temporary
        for path in sorted(temporary.rglob("*"), reverse=True):
            _sync(path)
        _sync(temporary)
        if target.exists():
            _exchange(temporary, target)
        else:
            temporary.rename(target)
        _sync(target.parent)
    shutil.rmtree(temporary, ignore_errors=True)  # what the target was before, if anything


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """The path of a file to write, which takes `target`'s place when the block ends well. Errors as `atomic_folder`."""
    temporary = _temporary(target)
    with _all_or_nothing(target, temporary):
        temporary.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _sync(temporary)
        temporary.replace(target)
        _sync(target.parent)


def remove_folder(target: Path) -> None:
    """Removes a folder, out of sight first: whoever looks never sees half of it."""
    hidden = _temporary(target)
    target.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Clears what killed writers left in a folder in which only this process writes, whatever it was to become."""
    for left in sorted(folder.glob(f".*{PARTIAL}*"), reverse=True):
        _clear(left, folder / left.name[1 : left.name.index(PARTIAL)])


def _temporary(target: Path) -> Path:
    """A name beside `target` that tells who writes there; those of writers that are gone are removed."""
    prefix = f".{target.name}{PARTIAL}{socket.gethostname()}-"
    for left in sorted(target.parent.glob(f"{prefix}*"), reverse=True):
        if not _alive(int(left.name.removeprefix(prefix).removesuffix(ASIDE))):
            _clear(left, target)
    return target.parent / f"{prefix}{os.getpid()}"


def _clear(left: Path, target: Path) -> None:
    """Removes what a killed writer left; what it had put aside (`_exchange`) goes back to its place if that is empty.

    The one put aside sorts after the one that it made place for, so it is looked at first in reverse order.
    """
    if left.name.endswith(ASIDE) and not target.exists():
        left.rename(target)
    else:
        _remove(left)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's
        return True
    return process != os.getpid()


@contextmanager
def _all_or_nothing(target: Path, temporary: Path) -> Iterator[None]:
    try:
        yield
    except BaseException as error:  # Ctrl-C too: nothing half-written stays
        _remove(temporary)
        if isinstance(error, OSError):
            raise refused(target, error, "make room or choose another place: what was there is untouched") from error
        raise


def refused(target: Path, error: OSError, advice: str) -> PellucidError:
    """The sentence for a disk that would not take something."""
    reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
    return PellucidError(f"{target} could not be written ({reason}); {advice}")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _sync(path: Path) -> None:
    """Waits until the file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _exchange(a: Path, b: Path) -> None:
    """Swaps two folders: in one step where the system can (Linux), elsewhere with the old one put aside in between."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.renameat2(_HERE, os.fsencode(a), _HERE, os.fsencode(b), _EXCHANGE) == 0:
            return
        if ctypes.get_errno() not in (errno.EINVAL, errno.ENOSYS):  # these two: the file system does not know how
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(b))
    aside = a.with_name(a.name + ASIDE)
    b.rename(aside)
    a.rename(b)
    aside.rename(a)


def check_replaceable(target: Path, own_files: tuple[str, ...], marker: str, what: str) -> None:
    """`InputError` unless `target` is absent, empty, or `what`: a folder with `marker` and only `own_files` (globs)."""
    if not target.exists():
        return
    if not target.is_dir():
        raise InputError(f"{target} is a file; give the name of a folder")
    names = sorted(path.name for path in target.iterdir())
    strange = [name for name in names if not any(Path(name).match(pattern) for pattern in own_files)]
    if names and (strange or marker not in names):
        seen = strange[0] if strange else names[0]
        raise InputError(f"{target} holds {seen!r}, so it is not just {what}; choose another or remove it")
