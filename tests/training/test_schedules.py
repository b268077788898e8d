"""The schedules: values worked by hand, and what holds for all of them."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.errors import InputError
from pellucid.training.recipe import OptimRecipe
from pellucid.training.schedules import scale


def scales(steps: int, **fields: Any) -> list[float]:
    optim = OptimRecipe(**fields)
    return [scale(optim, step, steps) for step in range(steps)]


def test_cosine_by_hand() -> None:
    """A warm-up of 4 steps, then half a cosine over 6: (1 + cos(k pi / 6)) / 2, from 1 to 0.1."""
    expected = [0.25, 0.5, 0.75, 1.0]
    expected += [0.1 + 0.9 * (1 + cosine) / 2 for cosine in (math.sqrt(3) / 2, 0.5, 0.0, -0.5, -math.sqrt(3) / 2, -1)]
    assert scales(10, schedule="cosine", warmup=4, final=0.1) == pytest.approx(expected)


def test_warmup_stable_decay_by_hand() -> None:
    """2 steps up, 4 at the top, the last 4 down: 1 - sqrt(k / 4), from 1 to 0.2."""
    falls = [1 - math.sqrt(0.25), 1 - math.sqrt(0.5), 1 - math.sqrt(0.75), 0.0]
    expected = [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, *(0.2 + 0.8 * fall for fall in falls)]
    assert scales(10, schedule="wsd", warmup=2, decay=0.4, final=0.2) == pytest.approx(expected)


def test_the_decay_waits_for_the_warm_up() -> None:
    assert scales(4, schedule="wsd", warmup=2, decay=1.0, final=0.0) == pytest.approx(
        [0.5, 1.0, 1 - math.sqrt(0.5), 0.0]
    )


def test_constant_by_hand() -> None:
    assert scales(5, schedule="constant", warmup=3, final=0.1) == pytest.approx([1 / 3, 2 / 3, 1, 1, 1])
    assert scales(3, schedule="constant", warmup=0) == [1, 1, 1]


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_after_the_last_step_it_stays(schedule: str) -> None:
    optim = OptimRecipe(schedule=schedule, warmup=2, final=0.3)
    assert scale(optim, 9, 10) == scale(optim, 10, 10) == scale(optim, 99, 10) == 0.3


@pytest.mark.parametrize(("warmup", "steps"), [(100, 100), (100, 10)])
def test_a_warm_up_that_takes_the_whole_run_is_refused(warmup: int, steps: int) -> None:
    with pytest.raises(InputError, match=f"optim.warmup = {warmup} steps leave nothing of a run of {steps} steps"):
        scale(OptimRecipe(warmup=warmup), 0, steps)


@given(
    st.sampled_from(["cosine", "wsd", "constant"]),
    st.integers(2, 3000),
    st.floats(0, 0.99),
    st.floats(0.01, 1),
    st.floats(0, 1),
)
def test_what_holds_for_all(schedule: str, steps: int, warm: float, decay: float, final: float) -> None:
    """In [0, 1]; up in equal parts, then never up; at `final` in the last step; nowhere a jump."""
    warmup = int(warm * steps)
    seen = scales(steps, schedule=schedule, warmup=warmup, decay=decay, final=final)
    assert all(0 <= value <= 1 for value in seen)
    assert seen[:warmup] == pytest.approx([(step + 1) / warmup for step in range(warmup)])
    after = [1.0, *seen[warmup:]]
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(after))
    if schedule != "constant":
        assert seen[-1] == pytest.approx(final)
    # The steepest: half a cosine pi / 2 over its length, 1 - sqrt(p) by its first step, sqrt(1 / length).
    length = steps - warmup if schedule == "cosine" else min(steps - warmup, steps * decay)
    most = {"cosine": math.pi / 2 / length, "wsd": min(1.0, length**-0.5), "constant": 0.0}[schedule]
    assert all(earlier - later <= most + 1e-9 for earlier, later in itertools.pairwise(after))
