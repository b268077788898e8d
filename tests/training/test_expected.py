"""A run compares itself with what its recipe expects (promise D8)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pellucid.training.expected import announced, verdict, verdicts
from pellucid.training.recipe import Band, ExpectRecipe


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (1.0, "step 1,200: loss 1.000, inside the expected 1 to 2.5"),
        (2.5, "step 1,200: loss 2.500, inside the expected 1 to 2.5"),
        (0.999, "step 1,200: loss 0.999, below the expected 1 to 2.5: "),
        (2.6, "step 1,200: loss 2.600, above the expected 1 to 2.5: "),
        (float("nan"), "step 1,200: loss nan, above the expected 1 to 2.5: "),
    ],
)
def test_inside_or_outside(loss: float, said: str) -> None:
    assert verdict(Band(step=1200, low=1, high=2.5), loss).startswith(said)


def test_the_mean_of_the_ten_steps_up_to_the_bands_is_compared(tmp_path: Path) -> None:
    lines = [{"step": step, "loss": float(step)} for step in range(1, 31)] + [{"step": 30, "validation_loss": 99.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    bands = [Band(step=step, low=0, high=20) for step in (30, 3, 20, 31)]
    assert [line[:20] for line in verdicts(tmp_path, bands)] == [
        "step 3: loss 2.000, ",
        "step 20: loss 15.500",
        "step 30: loss 25.500",
    ]
    assert list(verdicts(tmp_path, [])) == [] == list(verdicts(tmp_path / "none", bands))


def test_time_and_sample_are_told_where_the_recipe_has_them() -> None:
    assert list(announced(ExpectRecipe())) == []
    assert list(announced(ExpectRecipe(time="4 min on two cores", sample="Once upon a time"))) == [
        "expected time 4 min on two cores",
        "expected sample Once upon a time",
    ]
