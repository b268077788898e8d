"""How far many answers are: a bar on stderr, at a terminal."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

    from pellucid.inference.output import Outputs


class AnswerBar:
    """Prompts done, tokens a second that are read and written, and the time left, while `outputs` are answered.

    shown: False for no bar; nor is there one where stderr is no terminal.
    """

    def __init__(self, outputs: Outputs, *, shown: bool):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        rates = TextColumn("{task.fields[read]:,.0f} tokens/s in, {task.fields[written]:,.0f} out")
        columns = (TextColumn("answered"), BarColumn(), MofNCompleteColumn(), rates, TimeRemainingColumn())
        # What is printed meanwhile stays on stdout.
        self._bar = Progress(
            *columns, console=console, transient=True, redirect_stdout=False,
            disable=not (shown and console.is_terminal),
        )  # fmt: skip
        self._outputs, self._engine = outputs, outputs.engine
        self._task = self._bar.add_task("", total=len(outputs), read=0.0, written=0.0)
        self._began = time.perf_counter()
        self._read, self._written = self._engine.tokens_read, self._engine.tokens_drawn

    def __enter__(self) -> AnswerBar:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self) -> None:
        """Show what has been done by now."""
        seconds = time.perf_counter() - self._began
        # A token that is drawn goes through the model in the next step: it is not read, though the engine counts it.
        written = self._engine.tokens_drawn - self._written
        read = max(0, self._engine.tokens_read - self._read - written)
        self._bar.update(self._task, completed=self._outputs.done, read=read / seconds, written=written / seconds)
