"""What a run has measured is on record, whole lines only, and comes once however often the run is resumed."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pellucid.errors import PellucidError
from pellucid.training import metrics
from pellucid.training.metrics import Metrics, cut, read_metrics
from tests.disk import largest_file

KILLED = """
import os, signal, sys
from pathlib import Path
from pellucid.training.metrics import Metrics
with Metrics(Path(sys.argv[1]), None, tensorboard=False) as metrics:
    for step in range(1, 51):
        metrics.log(step, loss=1 / step)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def plain(folder: Path, resumed_at: int | None = None) -> Metrics:
    return Metrics(folder, resumed_at, tensorboard=False)


def test_every_line_is_an_object_with_what_was_logged(tmp_path: Path) -> None:
    with plain(tmp_path) as log:
        log.log(1, loss=0.1 + 0.2, tokens=2**40, text='“so”\n"it" goes', gone=None)
        assert len(read_metrics(tmp_path)) == 1  # at once, not at the end
        log.log(2, loss=math.nan, norm=math.inf)
    first, second = (json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert first == {"step": 1, "loss": 0.1 + 0.2, "tokens": 2**40, "text": '“so”\n"it" goes', "gone": None}
    assert second == {"step": 2, "loss": None, "norm": None}
    assert read_metrics(tmp_path) == [first, second]
    assert read_metrics(tmp_path / "nowhere") == []


def test_a_killed_run_has_all_of_its_lines(tmp_path: Path) -> None:
    assert subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False).returncode == -9
    assert [line["step"] for line in read_metrics(tmp_path)] == list(range(1, 51))


def test_a_resume_cuts_to_its_checkpoint(tmp_path: Path) -> None:
    with plain(tmp_path) as log:
        for step in range(6):
            log.log(step, loss=step)
            log.log(step, validation_loss=step)
    with plain(tmp_path, resumed_at=3) as log:
        log.log(4, loss=40.0)
    assert [line["step"] for line in read_metrics(tmp_path)] == [0, 0, 1, 1, 2, 2, 3, 3, 4]
    with plain(tmp_path):  # begun anew, since no checkpoint is there
        assert read_metrics(tmp_path) == []


LINES = st.lists(st.dictionaries(st.text(max_size=5), st.none() | st.integers() | st.text(max_size=9)), max_size=8)


@given(LINES, st.data())
def test_what_is_cut_is_whole_lines_up_to_the_step(
    tmp_path_factory: pytest.TempPathFactory, lines: list[dict[str, Any]], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    lines = [line | {"step": place // 2} for place, line in enumerate(lines)]
    raw = [json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in lines]
    size = data.draw(st.integers(0, len(b"".join(raw))))  # where a kill or a full disk ended it
    step = data.draw(st.integers(-1, 5))
    (folder / "metrics.jsonl").write_bytes(b"".join(raw)[:size])
    cut(folder / "metrics.jsonl", step)
    ends = [len(b"".join(raw[: place + 1])) for place in range(len(raw))]
    kept = [place for place, end in enumerate(ends) if end <= size and lines[place]["step"] <= step]
    assert (folder / "metrics.jsonl").read_bytes() == b"".join(raw[place] for place in kept)
    assert read_metrics(folder) == [lines[place] for place in kept]


@pytest.mark.parametrize("limit", range(50, 400, 50))
def test_a_full_disk_is_nothing_but_one_sentence(limit: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Whichever of the two files it is that does not fit."""
    with (
        largest_file(limit),
        pytest.raises(PellucidError, match=r"could not be written"),
        Metrics(tmp_path, None) as log,
    ):
        for step in range(100):
            log.log(step, loss=0.123456789)
    assert capfd.readouterr() == ("", "")


def test_a_full_disk_is_one_sentence_and_the_run_goes_on_after_it(tmp_path: Path) -> None:
    with plain(tmp_path) as log:
        with largest_file(200), pytest.raises(PellucidError, match=r"metrics.jsonl could not be written \(.*make room"):
            for step in range(100):
                log.log(step, loss=0.123456789)
        log.close()
    assert (tmp_path / "metrics.jsonl").stat().st_size == 200  # half a line is there
    whole = len(read_metrics(tmp_path))
    with plain(tmp_path, resumed_at=whole - 2) as log:
        log.log(whole - 1, loss=0.5)
    assert [line["step"] for line in read_metrics(tmp_path)] == list(range(whole))


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(PellucidError, match=r"metrics.jsonl could not be written"):
        plain(tmp_path)


def test_tensorboard_reads_the_same_and_each_step_once(tmp_path: Path) -> None:
    with Metrics(tmp_path, None) as log:
        for step in range(6):
            log.log(step, loss=float(step), sample="Once upon")
    with Metrics(tmp_path, 3) as log:
        log.log(4, loss=40.0, nothing=None)
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [(event.step, event.value) for event in board.Scalars("loss")] == [(0, 0), (1, 1), (2, 2), (3, 3), (4, 40)]
    assert board.Tags()["scalars"] == ["loss"] and board.Tags()["tensors"] == ["sample/text_summary"]


def test_without_tensorboard_the_run_goes_on_and_says_so_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "find_spec", lambda name: None)
    with pytest.warns(UserWarning) as warned, Metrics(tmp_path, None) as log:
        for step in range(3):
            log.log(step, loss=1.0)
    assert [str(warning.message) for warning in warned] == [
        "TensorBoard is not installed, so the metrics are in metrics.jsonl alone "
        "(to have both: pip install 'pellucid[track]')"
    ]
    assert len(read_metrics(tmp_path)) == 3 and os.listdir(tmp_path) == ["metrics.jsonl"]  # noqa: PTH208
