"""The event file that TensorBoard reads, written at once: torch's writer does it in a thread, which fails unheard."""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any


class Board:
    """Adds events to a new file in `folder`. Needs the package tensorboard. Every method raises `OSError`.

    first: the first step that is written; readers forget what earlier files say of it and of later ones.
    """

    def __init__(self, folder: Path, first: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]
        from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]

        folder.mkdir(exist_ok=True)
        # Readers take the files by name; TensorBoard looks for "tfevents" in it.
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self._event = Event
        self._file = (folder / name).open("xb")
        self._records = RecordWriter(self._file)
        self._write(file_version="brain.Event:2")
        self._write(step=first, session_log=SessionLog(status=SessionLog.START))

    def add(self, step: int, name: str, value: float | str) -> None:
        """A point of the curve `name`, or a text of that name."""
        from torch.utils.tensorboard.summary import scalar, text

        self._write(step=step, summary=text(name, value) if isinstance(value, str) else scalar(name, value))

    def flush(self) -> None:
        """What was added is with the system."""
        self._records.flush()

    def close(self) -> None:
        """Ends the file. What could not be written has been said by `flush`."""
        with suppress(OSError):
            self._file.close()

    def _write(self, **content: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **content).SerializeToString())
