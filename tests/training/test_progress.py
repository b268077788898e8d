"""A sign of life: plain lines in files, a bar on a terminal, in every phase."""

from __future__ import annotations

import io
import os
import pty
import time

import pytest

from pellucid.training import progress
from pellucid.training.progress import Progress, Status, duration


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.2, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (80, "1 min 20 s"), (7500, "2 h 5 min")]
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_a_line_says_what_is_known() -> None:
    assert Status(0, 1000, "compiling").line(75) == "step 0 of 1,000, compiling for 1 min 15 s"
    status = Status(120, 2000, "training", 3.2178, 3120.4, 0.613, 242)
    assert status.line(9) == "step 120 of 2,000, loss 3.218, 3,120 tokens/s, MFU 61%, 4 min 2 s left"


def test_plain_lines_come_by_themselves_and_not_too_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while this thread is busy; and a file gets no control codes, even if colour is asked for."""
    monkeypatch.setattr(progress, "HEARTBEAT", 0.05)
    monkeypatch.setenv("FORCE_COLOR", "1")
    stream, began = io.StringIO(), time.monotonic()
    with Progress(10, done=2, stream=stream) as shown:
        with shown.phase("compiling"):
            time.sleep(0.4)
        for step in range(3, 11):
            shown.step(step, loss=1 / step, rate=1000.0)
        time.sleep(0.2)
        shown.say("a sample: ...")
        lines = stream.getvalue().splitlines()
    beats = [line for line in lines if line != "a sample: ..."]
    assert beats[0] == "step 2 of 10, compiling for 0 s" and beats[-1].startswith("step 10 of 10, loss 0.100, 1,000")
    assert len(beats) <= (time.monotonic() - began) / 0.05
    assert "\x1b" not in stream.getvalue() and lines.count("a sample: ...") == 1
    quiet = len(stream.getvalue())
    time.sleep(0.15)
    assert len(stream.getvalue()) == quiet  # it ends with its block


def test_no_line_in_a_short_run() -> None:
    stream = io.StringIO()
    with Progress(2, stream=stream) as shown:
        for step in (1, 2):
            shown.step(step, loss=1.0)
    assert stream.getvalue() == ""


def test_the_time_left_counts_from_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step of a process compiles, and says nothing of the others."""
    clock = iter([0.0, 100.0, 102.0, 104.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    shown = Progress(100, done=40, stream=io.StringIO())
    shown.step(41, loss=1.0)
    assert shown.status.left is None
    shown.step(42, loss=1.0)
    shown.step(43, loss=1.0)
    assert shown.status.left == 57 * 2.0


def test_phases_nest_and_end_with_an_error() -> None:
    shown = Progress(10, stream=io.StringIO())
    with shown.phase("evaluating"):
        with pytest.raises(ValueError), shown.phase("sampling"):
            assert shown.status.phase == "sampling"
            raise ValueError
        assert shown.status.phase == "evaluating"
    assert shown.status.phase == "training"


@pytest.mark.parametrize(("terminal", "moves"), [("xterm-256color", True), ("dumb", False)])
def test_a_terminal_gets_a_bar(terminal: str, moves: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", terminal)
    monkeypatch.setenv("COLUMNS", "120")
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as stream, Progress(1000, stream=stream) as shown:
        shown.step(1, loss=4.0)
        shown.step(120, loss=3.2178, rate=3120.0, mfu=0.613)
        with shown.phase("evaluating"):
            time.sleep(0.3)
        shown.say("perplexity [bold] 25.0")  # not markup
    text = os.read(ours, 100_000).decode()
    os.close(ours)
    assert "perplexity [bold] 25.0" in text
    for part in ("evaluating", "120/1,000", "loss 3.218, 3,120 tokens/s, MFU 61%", " left", "\x1b["):
        assert (part in text) == moves
