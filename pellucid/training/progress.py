"""How far a run is: a bar on a terminal, a plain line every ten seconds elsewhere (promise E6).

Both go on by themselves, from a thread, while one thing takes long: a compilation, an evaluation, a save.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import median
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

HEARTBEAT = 10.0  # seconds between two lines
RECENT = 10  # steps whose median speed is shown: single ones jump
TRAINING = "training"


@dataclass(frozen=True, slots=True)
class Status:
    """Where a run is. rate: tokens/s. mfu: the part of the measured ceiling that is reached, 0 to 1. left: seconds."""

    step: int
    steps: int
    phase: str = TRAINING
    loss: float | None = None
    rate: float | None = None
    mfu: float | None = None
    left: float | None = None

    @property
    def figures(self) -> str:
        """ "loss 3.218, 3,120 tokens/s, MFU 61 %", as far as they are known."""
        known = [
            "" if self.loss is None else f"loss {self.loss:.3f}",
            "" if self.rate is None else f"{self.rate:,.0f} tokens/s",
            "" if self.mfu is None else f"MFU {self.mfu:.0%}",
        ]
        return ", ".join(filter(None, known))

    def line(self, in_phase: float) -> str:
        """All of it on one line. in_phase: seconds since the phase began."""
        left = "" if self.left is None else f"{duration(self.left)} left"
        phase = "" if self.phase == TRAINING else f"{self.phase} for {duration(in_phase)}"
        return ", ".join(filter(None, [f"step {self.step:,} of {self.steps:,}", self.figures, left, phase]))


def duration(seconds: float) -> str:
    """9 s, 1 min 20 s, 2 h 5 min."""
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class Progress:
    """Shows the status of a run on `stream` (standard error unless told otherwise) until the `with` block ends.

    steps: how many the run has. done: how many were done when this process took it up.
    """

    def __init__(self, steps: int, done: int = 0, stream: TextIO | None = None) -> None:
        self.status = Status(done, steps)
        self._stream = stream or sys.stderr
        self._bar = _bar(self.status, self._stream)
        self._phase_began = time.monotonic()
        self._recent: deque[tuple[float | None, float | None]] = deque(maxlen=RECENT)  # (rate, mfu)
        self._first: tuple[int, float] | None = None  # (steps done, when) after this process's first step
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)

    def step(self, step: int, *, loss: float, rate: float | None = None, mfu: float | None = None) -> None:
        """Tells that `step` steps are done, and what the last one gave."""
        now = time.monotonic()
        if self._first is None:  # compiling and the like are behind us
            self._first = (step, now)
        first, began = self._first
        pace = (now - began) / (step - first) if step > first else None
        left = None if pace is None else pace * (self.status.steps - step)
        self._recent.append((rate, mfu))
        rates, mfus = ([x for x in values if x is not None] for values in zip(*self._recent, strict=True))
        self.status = replace(
            self.status,
            step=step,
            loss=loss,
            rate=median(rates) if rates else None,
            mfu=median(mfus) if mfus else None,
            left=left,
        )
        self._show()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What is done meanwhile is called `name`: evaluating, saving, sampling, compiling."""
        before = self.status.phase
        self._enter(name)
        try:
            yield
        finally:
            self._enter(before)

    def say(self, text: str) -> None:
        """Prints a line of its own, above the bar where there is one."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=self._stream, flush=True)

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        else:
            self._heart.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._bar is not None:
            self._bar.stop()
        else:
            self._heart.join()

    def _enter(self, phase: str) -> None:
        self._phase_began = time.monotonic()
        self.status = replace(self.status, phase=phase)
        self._show()

    def _show(self) -> None:
        if self._bar is not None:
            left = "" if self.status.left is None else f"{duration(self.status.left)} left"
            self._bar.update(
                self._bar.task_ids[0],
                completed=self.status.step,
                description=self.status.phase,
                figures=self.status.figures,
                left=left,
            )

    def _beat(self) -> None:
        """The plain lines."""
        while not self._ended.wait(HEARTBEAT):
            self.say(self.status.line(time.monotonic() - self._phase_began))


def _bar(status: Status, stream: TextIO) -> RichProgress | None:
    """None where nothing can move: a file, a pipe, a terminal that only takes lines.

    "evaluating ━━━━━━ 120/1,000 loss 3.218, 3,120 tokens/s, MFU 61 % 4 min 2 s left".
    """
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TextColumn
    from rich.progress import Progress as Bar

    console = Console(file=stream)
    if not (stream.isatty() and console.is_interactive):
        return None
    bar = Bar(
        SpinnerColumn(),
        TextColumn("{task.description:<10}"),
        BarColumn(bar_width=None),
        TextColumn("{task.completed:,}/{task.total:,}"),
        TextColumn("[cyan]{task.fields[figures]}"),
        TextColumn("[dim]{task.fields[left]}"),
        console=console,
        refresh_per_second=4,
        expand=True,
    )
    bar.add_task(status.phase, total=status.steps, completed=status.step, figures="", left="")
    return bar
