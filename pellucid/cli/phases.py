"""How far a command of several phases is: a bar on a terminal, a line every ten seconds elsewhere (promise E6)."""

from __future__ import annotations

import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

Show: TypeAlias = Callable[[str, int, int], None]
"""Is told what is being done, how much of it is done, and how much there is."""

HEARTBEAT = 10.0  # seconds
PACKAGE = Path(__file__).parent.parent


@contextmanager
def phases() -> Iterator[Show]:
    """Shows on stderr what the `with` block tells, with the time left; elsewhere than on a terminal every ten seconds,
    also while nothing is told."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    bar = Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal)
    task = bar.add_task("", total=None)
    began, current = time.monotonic(), ("", 0, 1)

    def show(phase: str, done: int, of: int) -> None:
        nonlocal began, current
        if phase != current[0]:
            began = time.monotonic()
            bar.reset(task, description=phase, total=of, completed=done)
        current = (phase, done, of)
        bar.update(task, completed=done, total=of)

    def line() -> str:
        phase, done, of = current
        seconds = time.monotonic() - began
        left = f", {seconds * (of - done) / done:.0f} s left" if 0 < done < of else ""
        return f"{phase}: {done:,} of {of:,}, {seconds:.0f} s{left}"

    with bar, beating(line, silent=console.is_terminal):
        yield show


@contextmanager
def beating(line: Callable[[], str], *, silent: bool) -> Iterator[None]:
    """A line on stderr every ten seconds while the `with` block runs; silent: none."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(HEARTBEAT):
            print(line(), file=sys.stderr, flush=True)

    heart = threading.Thread(target=beat, daemon=True)
    if not silent:
        heart.start()
    try:
        yield
    finally:
        ended.set()
        if not silent:
            heart.join()


@contextmanager
def noting() -> Iterator[None]:
    """Our own warnings of the `with` block become notes on stderr after it, each once, whether it ends well or not.
    Those of libraries go their way."""
    caught: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            yield
    finally:
        own = [Path(one.filename).is_relative_to(PACKAGE) and one.category is UserWarning for one in caught]
        for message in dict.fromkeys(str(one.message) for one, ours in zip(caught, own, strict=True) if ours):
            print(f"note: {message}", file=sys.stderr)
        for one in (one for one, ours in zip(caught, own, strict=True) if not ours):
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno, source=one.source)
