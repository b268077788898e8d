"""What a recipe expects of its run, and how the run compares with it (promise D8)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean

from pellucid.training.metrics import read_metrics
from pellucid.training.recipe import Band, ExpectRecipe

STEPS = 10  # whose mean loss is compared, the band's step the last of them: single ones jump


def announced(expect: ExpectRecipe) -> Iterator[str]:
    """What is told before the first step, a line each."""
    if expect.time is not None:
        yield f"expected time {expect.time}"
    if expect.sample is not None:
        yield f"expected sample {expect.sample}"


def verdicts(run: Path, bands: Sequence[Band]) -> Iterator[str]:
    """Inside or outside, for each band whose step the run folder's metrics have, a line each."""
    losses = {line["step"]: line["loss"] for line in read_metrics(run) if "loss" in line} if bands else {}
    for band in sorted(bands, key=lambda band: band.step):
        if band.step in losses:
            recent = [losses[step] for step in range(band.step - STEPS + 1, band.step + 1) if step in losses]
            yield verdict(band, fmean(recent))


def verdict(band: Band, loss: float) -> str:
    """How a mean loss compares with a band."""
    where = f"step {band.step:,}: loss {loss:.3f}"
    if band.low <= loss <= band.high:
        return f"{where}, inside the expected {band.low:g} to {band.high:g}"
    side = "below" if loss < band.low else "above"
    return f"{where}, {side} the expected {band.low:g} to {band.high:g}: something is not as when that was measured"
