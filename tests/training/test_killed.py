"""A run that is killed or stopped at any moment, and started again by the same line, is the run left alone (D1, D7)."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pellucid.cli.app import run as command
from pellucid.data.packing import Stream
from pellucid.training import loop
from pellucid.training.metrics import read_metrics
from tests.training.tiny_run import ended, fork, fresh, hurry, write_recipe

EVERY_STEP = {"steps": 40, "save_every": 1, "sample_prompts": ["The cat"], "sample_tokens": 4}


def curve(run: Path, *names: str) -> list[list[Any]]:
    """These values of each line of the metrics that has the first of them."""
    return [[line["step"], *(line[name] for name in names)] for line in read_metrics(run) if names[0] in line]


def killed_at_random(folder: str, kills: str) -> dict[str, Any]:
    """Starts the same run again and again and kills it, most of the time in or after a save; then lets it end."""
    place, clock = Path(folder), random.Random(0)
    recipe = write_recipe(place, "killed", train=EVERY_STEP)
    log = os.open(place / "rows.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    read = Stream.read

    def noted(self: Stream, indices: Sequence[int]) -> Any:
        if self.shuffle:  # the rows that are trained on
            os.write(log, json.dumps([os.getpid(), *map(int, indices)]).encode() + b"\n")
        return read(self, indices)

    Stream.read = noted  # type: ignore[method-assign]
    hurry()
    inside, reached = 0, []
    for number in range(int(kills)):
        child = fork(lambda: command(["pretrain", recipe]), place / "said.txt")
        before, wanted = steps_on_record(place / "killed"), clock.randrange(1, 4)
        while steps_on_record(place / "killed") < before + wanted and os.waitpid(child, os.WNOHANG) == (0, 0):
            time.sleep(0.001)
        time.sleep(clock.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
        assert ended(child) == -signal.SIGKILL, f"kill {number} came after the end"
        inside += any(path.name.startswith(".step") for path in (place / "killed/checkpoints").iterdir())
        reached.append(before)
    last = fork(lambda: command(["pretrain", recipe]), place / "said.txt")
    assert ended(last) == 0, (place / "said.txt").read_text()
    return {"inside": inside, "reached": reached}


def steps_on_record(run: Path) -> int:
    return max((line["step"] for line in read_metrics(run)), default=0)


def left_alone(folder: str) -> None:
    hurry()
    child = fork(
        lambda: command(["pretrain", write_recipe(Path(folder), "alone", train=EVERY_STEP)]), Path("/dev/null")
    )
    assert ended(child) == 0


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("alone")
    fresh(left_alone, str(folder))
    return folder


def same(one: Path, other: Path) -> None:
    """Two runs with the same weights, bit for bit, and the same figures, step for step."""
    assert (one / "final/model.safetensors").read_bytes() == (other / "final/model.safetensors").read_bytes()
    for names in (("loss", "gradient_norm", "learnt", "tokens", "lr"), ("validation_loss", "tokens")):
        assert curve(one, *names) == curve(other, *names)
    assert (one / "samples.jsonl").read_bytes() == (other / "samples.jsonl").read_bytes()
    for file in ("state.safetensors", "state.json", "model.safetensors"):
        ours, theirs = (run / "checkpoints/step-40" / file for run in (one, other))
        assert ours.read_bytes() == theirs.read_bytes(), file


def test_killed_ten_times_it_is_the_run_left_alone(alone: Path, tmp_path: Path) -> None:
    told = fresh(killed_at_random, str(tmp_path), "10")
    assert told["reached"][-1] >= 8 and told["inside"] >= 2  # it got on, and some kills met a save
    same(alone / "alone", tmp_path / "killed")
    assert len(curve(alone / "alone", "loss")) == 40
    consumed(tmp_path / "rows.log")


def consumed(log: Path) -> None:
    """Each process read the rows of one step after another from where it took up the run; together, those of a run."""
    by_process: dict[int, list[list[int]]] = {}
    for line in log.read_text().splitlines():
        process, *rows = json.loads(line)
        by_process.setdefault(process, []).append(rows)
    effective: dict[int, list[int]] = {}
    for reads in by_process.values():
        for rows in reads[1:]:  # the first one is the trial before the first step
            effective[rows[0] // 8] = rows
        firsts = [rows[0] for rows in reads[1:]]
        assert firsts == list(range(firsts[0], firsts[0] + 8 * len(firsts), 8)) if firsts else True
    assert [row for step in sorted(effective) for row in effective[step]] == list(np.arange(40 * 8))


def stopped_by(folder: str, number: str) -> list[int]:
    """The statuses of a run that gets a signal, of the same line again, and the step that had been saved between."""
    hurry()
    place, stop = Path(folder), int(number)
    recipe = write_recipe(place, "stopped", train=EVERY_STEP | {"save_every": 35})
    child = fork(lambda: command(["pretrain", recipe]), place / "said.txt")
    while steps_on_record(place / "stopped") < 7:
        time.sleep(0.001)
    os.kill(child, stop)
    status = ended(child)
    (saved,) = (place / "stopped/checkpoints").iterdir()
    again = fork(lambda: command(["pretrain", recipe]), place / "again.txt")
    return [status, ended(again), int(saved.name.removeprefix("step-"))]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_ends_and_the_same_line_goes_on(
    number: int, status: int, alone: Path, tmp_path: Path
) -> None:
    first, second, saved = fresh(stopped_by, str(tmp_path), str(int(number)))
    assert (first, second) == (status, 0) and 7 <= saved < 35
    said = (tmp_path / "said.txt").read_text().splitlines()
    assert said[-1] == f"stopped after step {saved} and saved: the same command goes on from there"
    assert f"going on after step {saved}" in (tmp_path / "again.txt").read_text()
    same(alone / "alone", tmp_path / "stopped")


def stopped_twice(folder: str, number: str) -> list[Any]:
    """The status of a run that gets a signal twice in a long step; how long it lived after the second."""
    hurry()
    place, stop = Path(folder), int(number)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which is ignored where the tests run in the background
    recipe = write_recipe(place, "stopped")
    take = loop.take_gradient

    def slow(*given: Any, **named: Any) -> Any:
        if (place / "stopped/metrics.jsonl").stat().st_size:  # one step is done
            (place / "slow").touch()
            time.sleep(100)
        return take(*given, **named)

    loop.take_gradient = slow  # type: ignore[assignment]
    child = fork(lambda: command(["pretrain", recipe]), place / "said.txt")
    while not (place / "slow").exists():
        time.sleep(0.01)
    os.kill(child, stop)
    time.sleep(0.3)
    still = os.waitpid(child, os.WNOHANG) == (0, 0)
    began, gone, status = time.monotonic(), 0, 0
    while not gone:  # two signals are one to a process that had no time between them
        os.kill(child, stop)
        time.sleep(0.3)
        gone, status = os.waitpid(child, os.WNOHANG)
    return [os.waitstatus_to_exitcode(status), still, time.monotonic() - began]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_a_second_signal_ends_at_once(number: int, status: int, tmp_path: Path) -> None:
    ended_with, waited, seconds = fresh(stopped_twice, str(tmp_path), str(int(number)))
    assert ended_with == status and waited and seconds < 60
    assert "Traceback" not in (tmp_path / "said.txt").read_text()
