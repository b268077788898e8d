"""Two pictures of a reward model: whether it is as sure as it is right, and whether it pays for length."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pellucid.training.curves import EXPECTED, STYLE, TRAINING

Floats = npt.NDArray[np.float64]
Reliability = tuple[float, float, tuple[float, float]]  # what was said, how often it was so, the 95 % interval


def draw(bins: Sequence[Reliability], length: Floats, reward: Floats, title: str) -> str:
    """The picture as SVG text. length (in tokens), reward: (A,), of each answer. Needs Matplotlib."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.5, 4), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.plot([0.5, 1], [0.5, 1], color="#999999", linewidth=1, linestyle="--", label="as sure as it is right")
        said, hits, intervals = zip(*bins, strict=True)
        bars = [[hit - low, high - hit] for hit, (low, high) in zip(hits, intervals, strict=True)]
        left.errorbar(said, hits, np.array(bars).T, color=TRAINING, marker="o", capsize=3, label="this model")
        left.set_xlim(0.48, 1.02)
        left.set_xlabel("probability that it gives its choice")
        left.set_ylabel("how often that is right")
        left.legend(loc="lower right")
        left.set_title(title, loc="left", fontsize=12, fontweight="bold", color="#222222")
        right.scatter(length, reward, s=8, alpha=0.4, color=TRAINING, linewidths=0)
        if np.ptp(length) > 0:
            slope, height = np.polyfit(length, reward, 1)
            ends = np.array([length.min(), length.max()])
            right.plot(ends, slope * ends + height, color=EXPECTED, label=f"{slope:+.3g} a token")
            right.legend(loc="lower right")
        right.set_xlabel("tokens of the answer")
        right.set_ylabel("reward")
        for axes in (left, right):
            axes.tick_params(length=0)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Title": title})
    return text.getvalue()[text.getvalue().index("<svg") :]
