"""What a run measures, step by step: `metrics.jsonl`, one JSON object a line, and TensorBoard where it is installed.

{"step": 40, "tokens": 163840, "loss": 3.2181, "lr": 0.0003, ...}
{"step": 40, "validation_loss": 3.4012, ...}
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

from pellucid.checkpoints.atomic import refused
from pellucid.training.board import Board

METRICS, TENSORBOARD = "metrics.jsonl", "tensorboard"
KEPT = "make room and resume the run: its checkpoints and the metrics so far are there"


class Metrics:
    """Writes the metrics of a run, each line at once, so that a run that is killed has all of them on record.

    resumed_at: the step of the checkpoint that the run goes on from; what was written of later steps is cut off, and
    comes again. None: the run begins.
    tensorboard: write for TensorBoard too (`tensorboard --logdir <run>`); a warning says when it is not installed.
    """

    def __init__(self, folder: Path, resumed_at: int | None, tensorboard: bool = True) -> None:
        self.path = folder / METRICS
        self._board: Board | None = None
        try:
            cut(self.path, resumed_at)
            self._file = self.path.open("ab", buffering=0)
            if tensorboard:
                self._board = _open_tensorboard(folder / TENSORBOARD, resumed_at)
        except OSError as error:
            raise refused(self.path, error, KEPT) from error

    def log(self, step: int, **values: float | str | None) -> None:
        """Adds a line. JSON has no NaN and no infinity: they are written as null.

        Raises `PellucidError` when the disk refuses.
        """
        finite = {name: _finite(value) for name, value in values.items()}
        line = json.dumps({"step": step, **finite}, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        try:
            while line:  # a disk that fills up takes a part, and refuses the rest
                line = line[self._file.write(line) :]
            if self._board is not None:
                for name, value in values.items():
                    if value is not None:
                        self._board.add(step, name, value)
                self._board.flush()
        except OSError as error:
            raise refused(self.path, error, KEPT) from error

    def close(self) -> None:
        """Nothing is pending: each line has been written when `log` returned."""
        self._file.close()
        if self._board is not None:
            self._board.close()

    def __enter__(self) -> Metrics:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`, up to the first that is not whole."""
    path = folder / METRICS
    return [line for _, line in _whole_lines(path)] if path.is_file() else []


def cut(path: Path, step: int | None) -> None:
    """Cuts off what comes after the lines of `step` (None: everything), and half a line where a run was killed."""
    if not path.exists():
        return
    end = 0
    for after, line in _whole_lines(path):
        if step is None or line["step"] > step:
            break
        end = after
    with path.open("r+b") as file:
        file.truncate(end)


def _whole_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(the place in bytes at which the line ends, what it says), up to the first that is not whole."""
    end = 0
    with path.open("rb") as file:
        for raw in file:
            end += len(raw)
            try:
                line = json.loads(raw)
            except ValueError:
                return
            if not raw.endswith(b"\n") or not isinstance(line, dict) or not isinstance(line.get("step"), int):
                return
            yield end, line


def _finite(value: float | str | None) -> float | str | None:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _open_tensorboard(folder: Path, resumed_at: int | None) -> Board | None:
    """A writer whose readers forget what an earlier process wrote of steps that now come again."""
    if find_spec("tensorboard") is None:
        warnings.warn(
            "TensorBoard is not installed, so the metrics are in metrics.jsonl alone "
            "(to have both: pip install 'pellucid[track]')",
            stacklevel=3,
        )
        return None
    return Board(folder, first=0 if resumed_at is None else resumed_at + 1)
