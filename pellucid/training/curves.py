"""The curves of a run as a picture: loss over tokens, where it was expected to be, and the learning rate below.

What is read from `metrics.jsonl`: step, tokens, loss, lr; and validation_loss at some of the steps.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pellucid.checkpoints.atomic import atomic_file
from pellucid.training.metrics import read_metrics
from pellucid.training.recipe import Band

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVES = "loss.svg"
SMOOTH = 0.01  # of the run: how far the running mean reaches to both sides
# Okabe & Ito (2008), "Color Universal Design": told apart by everyone, light enough and dark enough for paper.
TRAINING, VALIDATION, EXPECTED, RATE = "#0072B2", "#D55E00", "#009E73", "#666666"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "pellucid",  # the same run gives the same file
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica", "Arial", "DejaVu Sans", "sans-serif"],
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#999999",
    "axes.labelcolor": "#333333",
    "xtick.color": "#666666",
    "ytick.color": "#666666",
    "axes.grid": True,
    "grid.color": "#e8e8e8",
    "axes.axisbelow": True,
    "legend.frameon": False,
}
Points = list[tuple[float, float]]  # (tokens, value)


def write_curves(run: Path, title: str, expected: Sequence[Band] = ()) -> Path | None:
    """Draws `loss.svg` into the run folder from its metrics; returns where it is.

    None: there is nothing to draw yet, or Matplotlib is not installed, which a warning says.
    """
    metrics = read_metrics(run)
    if not points(metrics, "loss"):
        return None
    if find_spec("matplotlib") is None:
        warnings.warn(
            f"Matplotlib is not installed, so {run} gets no {CURVES} (to have it: pip install 'pellucid[plot]')",
            stacklevel=2,
        )
        return None
    with atomic_file(run / CURVES) as temporary:
        temporary.write_text(draw(metrics, title, expected), encoding="utf-8")
    return run / CURVES


def draw(metrics: Sequence[Mapping[str, Any]], title: str, expected: Sequence[Band] = ()) -> str:
    """The picture as SVG text, which can stand in a page as it is. Needs Matplotlib.

    metrics: lines of `metrics.jsonl`. expected: bands of the recipe, drawn where the run has come to.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.5, 4.8), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        _draw_loss(above, metrics, expected)
        above.set_title(title, loc="left", fontsize=12, fontweight="bold", color="#222222")
        _draw_rate(below, points(metrics, "lr"))
        below.set_xlabel("tokens seen")
        below.xaxis.set_major_formatter(lambda value, _: count(value))
        for axes in (above, below):
            axes.tick_params(length=0)
        figure.align_ylabels()
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Title": title})
    return text.getvalue()[text.getvalue().index("<svg") :]


def points(metrics: Sequence[Mapping[str, Any]], name: str) -> Points:
    """(tokens, value) of each line that has the value; tokens as far as they are known at its step."""
    found: Points = []
    tokens = 0
    for line in metrics:
        tokens = line.get("tokens", tokens)
        if line.get(name) is not None:
            found.append((tokens, line[name]))
    return found


def smooth(values: Sequence[float], reach: int) -> list[float]:
    """At each place the mean of the values at most `reach` places away."""
    sums = [0.0, *accumulate(values)]
    ranges = ((max(place - reach, 0), min(place + reach + 1, len(values))) for place in range(len(values)))
    return [(sums[end] - sums[start]) / (end - start) for start, end in ranges]


def count(value: float) -> str:
    """1500 -> "1.5 K", 2000000 -> "2 M"."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "K")):
        if abs(value) >= size:
            return f"{value / size:.4g} {unit}"
    return f"{value:.4g}"


def _draw_loss(axes: Axes, metrics: Sequence[Mapping[str, Any]], expected: Sequence[Band]) -> None:
    """The single steps faint, their running mean strong, the validation as points on a line."""
    tokens, losses = zip(*points(metrics, "loss"), strict=True)
    mean = smooth(losses, round(SMOOTH * len(losses)))
    axes.plot(tokens, losses, color=TRAINING, alpha=0.25, linewidth=0.8)
    axes.plot(tokens, mean, color=TRAINING, linewidth=1.8, label=f"training, {mean[-1]:.2f}")
    seen = [*losses]
    if validation := points(metrics, "validation_loss"):
        places, values = zip(*validation, strict=True)
        axes.plot(
            places, values, "o-", color=VALIDATION, linewidth=1.2, markersize=4, label=f"validation, {values[-1]:.2f}"
        )
        seen += values
    seen += _draw_expected(axes, metrics, expected)
    axes.set_ylabel("loss (nats a token)")
    margin = 0.05 * (max(seen) - min(seen) or 1)
    axes.set_ylim(min(seen) - margin, max(seen) + margin)
    axes.legend(loc="upper right")


def _draw_expected(axes: Axes, metrics: Sequence[Mapping[str, Any]], expected: Sequence[Band]) -> list[float]:
    """Where the recipe expects the loss: bars at its steps, and what lies between them shaded. The borders of all."""
    tokens_at = {line["step"]: line["tokens"] for line in metrics if "tokens" in line}
    reached = [band for band in sorted(expected, key=lambda band: band.step) if band.step <= max(tokens_at, default=0)]
    if not reached:
        return []
    places = [tokens_at[min(tokens_at, key=partial(_distance, band.step))] for band in reached]
    low, high = [band.low for band in reached], [band.high for band in reached]
    axes.fill_between(places, low, high, color=EXPECTED, alpha=0.15, linewidth=0)
    axes.vlines(places, low, high, color=EXPECTED, linewidth=2.5, label="expected")
    return low + high


def _distance(step: int, other: int) -> int:
    return abs(step - other)


def _draw_rate(axes: Axes, rates: Points) -> None:
    if rates:
        axes.plot(*zip(*rates, strict=True), color=RATE, linewidth=1.2)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("learning rate")
    axes.yaxis.set_major_formatter("{x:g}")
