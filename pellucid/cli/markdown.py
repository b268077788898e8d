"""Markdown that is still being written: finished blocks are printed for good, the last one is redrawn as it grows."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown

REDRAW_SECONDS = 0.1  # drawing costs time that the model could use


class MarkdownStream:
    """Shows the pieces of a text as Markdown while they come. A context manager: what is left is drawn at the end."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False)
        self._open = ""  # the block that still grows
        self._drawn = 0.0

    def __enter__(self) -> MarkdownStream:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._live.update(Markdown(self._open), refresh=True)
        self._live.stop()

    def push(self, piece: str) -> None:
        self._open += piece
        end = finished_blocks(self._open)
        if end:
            self._live.update("")
            self._console.print(Markdown(self._open[:end]))
            self._console.print()
            self._open = self._open[end:]
        if end or time.monotonic() - self._drawn > REDRAW_SECONDS:
            self._live.update(Markdown(self._open), refresh=True)
            self._drawn = time.monotonic()


def finished_blocks(text: str) -> int:
    """Where the finished blocks end: after the last blank line outside a code fence that has text after it, or 0."""
    end = place = 0
    fence = ""
    for line in text.splitlines(keepends=True):
        mark = line.strip()[:3]
        if fence:
            fence = "" if mark == fence else fence
        elif mark in ("```", "~~~"):
            fence = mark
        place += len(line)
        if not fence and line.isspace() and text[place:].strip() and text[:place].strip():
            end = place
    return end
