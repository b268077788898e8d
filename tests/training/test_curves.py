"""The picture of a run: what is in it, from metrics alone."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.training import curves
from pellucid.training.curves import count, draw, points, smooth, write_curves
from pellucid.training.metrics import Metrics
from pellucid.training.recipe import Band

BANDS = (Band(step=50, low=2.0, high=3.0), Band(step=100, low=1.5, high=2.5), Band(step=900, low=1.0, high=2.0))


def lines(validation: bool = True) -> list[dict[str, Any]]:
    """Of a run of 100 steps whose loss falls from 9 to 2, with some values missing."""
    found: list[dict[str, Any]] = []
    for step in range(1, 101):
        loss = None if step == 7 else 2 + 7 * math.exp(-step / 20)
        found.append({"step": step, "tokens": step * 10_000, "loss": loss, "lr": 1e-3 * min(step / 10, 1)})
        if validation and step % 25 == 0:
            found.append({"step": step, "validation_loss": 2.5})
    return found


def texts(svg: str) -> list[str]:
    return [
        element.text for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text") if element.text
    ]


def test_the_picture_says_what_it_shows() -> None:
    svg = draw(lines(), "runs/<first> & best", BANDS)
    assert svg.startswith("<svg") and "NaN" not in svg
    said = texts(svg)
    for text in ("runs/<first> & best", "training, 2.05", "validation, 2.50", "expected", "tokens seen", "1 M"):
        assert text in said
    assert "learning rate" in said and "loss (nats a token)" in said
    assert svg == draw(lines(), "runs/<first> & best", BANDS)  # the same run, the same file


def test_what_is_not_there_is_not_drawn() -> None:
    assert not {"expected", "validation, 2.50"} & set(texts(draw(lines(validation=False), "run", BANDS[2:])))
    one = draw([{"step": 1, "loss": 3.0}], "one step, no tokens", BANDS)
    assert "training, 3.00" in texts(one)


def test_expected_bands_are_where_the_run_has_come_to() -> None:
    """The bars are drawn to the right of each other, one for each band that was reached."""
    svg = draw(lines(), "run", BANDS)
    bars = re.findall(rf'd="M ([\d.]+) [\d.]+ \nL ([\d.]+) [\d.]+ \n"[^>]*stroke: {curves.EXPECTED.lower()}', svg)
    upright = [float(start) for start, end in bars if start == end]  # that of the legend is level
    assert len(upright) == 2 and upright[0] < upright[1]


def test_a_band_that_the_run_misses_is_in_the_picture_whole() -> None:
    svg = draw(lines(), "run", [Band(step=100, low=0.5, high=20.0)])
    heights = [float(text) for text in texts(svg) if re.fullmatch(r"[\d.]+", text)]
    assert 20 in heights and 0 in heights


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=50), st.integers(0, 20))
def test_the_running_mean_is_numpys(values: list[float], reach: int) -> None:
    window = np.ones(2 * reach + 1)
    sums = np.convolve(values, window)[reach : reach + len(values)]
    counts = np.convolve(np.ones(len(values)), window)[reach : reach + len(values)]
    assert np.allclose(smooth(values, reach), sums / counts, atol=1e-9)


def test_points_know_the_tokens_of_their_step() -> None:
    assert points(lines(), "validation_loss") == [(250_000, 2.5), (500_000, 2.5), (750_000, 2.5), (1_000_000, 2.5)]
    assert len(points(lines(), "loss")) == 99


@pytest.mark.parametrize(
    ("value", "said"), [(0, "0"), (950, "950"), (1500, "1.5 K"), (2e6, "2 M"), (3.25e9, "3.25 G"), (-2000, "-2 K")]
)
def test_counts(value: float, said: str) -> None:
    assert count(value) == said


def test_it_is_written_into_the_run_folder(tmp_path: Path) -> None:
    assert write_curves(tmp_path, "run") is None  # nothing measured yet
    with Metrics(tmp_path, None, tensorboard=False) as log:
        for line in lines():
            log.log(**line)
    assert write_curves(tmp_path, "run", BANDS) == tmp_path / "loss.svg"
    assert "expected" in texts((tmp_path / "loss.svg").read_text())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loss.svg", "metrics.jsonl"]


def test_without_matplotlib_the_run_goes_on_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "find_spec", lambda name: None)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    with pytest.warns(UserWarning, match=r"gets no loss.svg \(to have it: pip install 'pellucid\[plot\]'\)"):
        assert write_curves(tmp_path, "run") is None
