"""The start-up is told in parts that are together the whole (promise I4)."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from pellucid.cli.timeline import Timeline, process_age


def test_parts_follow_each_other_and_each_ends_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    timeline = Timeline(age=0.5)
    for part, seconds in (("imports", 1.0), ("load", 0.25), ("load", 4.0), ("first token", 0.0)):
        now[0] += seconds
        timeline.end(part)
    assert timeline.parts == {"imports": 1.5, "load": 0.25, "first token": 4.0}
    assert timeline.seconds == 5.75
    assert timeline.line() == "first token after 5.75 s: imports 1.50, load 0.25, first token 4.00"


def test_a_start_without_a_token_is_ready() -> None:
    timeline = Timeline()
    timeline.end("load")
    assert timeline.line().startswith("ready after 0.00 s: load 0.00")


def test_the_age_counts_from_the_start_of_the_process() -> None:
    started = time.perf_counter()
    script = "import time; time.sleep(1); from pellucid.cli.timeline import process_age; print(process_age())"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert 0.95 < float(out) <= time.perf_counter() - started + 0.05
    assert process_age() > float(out)


def test_the_parts_of_a_real_start_are_the_time_to_its_first_token() -> None:
    command = [sys.executable, "-m", "pellucid", "generate", "smollm2", "-p", "Once", "--max-tokens", "1"]
    started = time.perf_counter()
    with subprocess.Popen(
        [*command, "--dtype", "float32"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.read(1)
        seconds = time.perf_counter() - started
        line = process.stderr.read().splitlines()[-1]
    said = float(line.removeprefix("first token after ").split(" s: ")[0])
    parts = dict(part.rsplit(" ", 1) for part in line.split(" s: ")[1].split(", "))
    assert list(parts) == ["imports", "native code", "precision", "load", "engine", "first token"]
    assert sum(map(float, parts.values())) == pytest.approx(said, abs=0.04)  # each is rounded
    assert said == pytest.approx(seconds, rel=0.05, abs=0.1)
