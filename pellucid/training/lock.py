"""The lock of a run folder: one process writes there at a time. The system drops it when that process dies."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path
from typing import BinaryIO

from pellucid.errors import InputError

LOCK = ".lock"


def lock(folder: Path) -> BinaryIO:
    """Takes the folder for this process; closing what is returned, or dying, gives it back.

    The file's content is for the message alone: what holds is the system's lock on it, so that a file which a killed
    run has left is no obstacle. Raises `InputError` when another run has the folder.
    """
    file = (folder / LOCK).open("a+b", buffering=0)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        owner = file.read().decode("utf-8", "replace").strip() or "of an unknown number"
        file.close()
        raise InputError(
            f"{folder} is in use by process {owner}: wait for that run to end, stop it, or choose another run folder"
        ) from None
    file.truncate(0)
    file.write(f"{os.getpid()} on {socket.gethostname()}\n".encode())
    # A child that outlives its parent must not hold the lock for it.
    os.register_at_fork(after_in_child=file.close)
    return file
