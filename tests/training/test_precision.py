"""The precision of training is measured on a step of training, remembered, and can be set (promise E4)."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from pellucid.errors import InputError
from pellucid.operations import hardware
from pellucid.operations.ceilings import Trial
from pellucid.training import precision
from pellucid.training.precision import best_training_precision, time_training


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PELLUCID_CACHE", str(tmp_path))
    return tmp_path


def with_times(patch: pytest.MonkeyPatch, float32: float, bfloat16: float) -> list[int]:
    """An imagined machine, and a list that grows each time that it is asked."""
    asked: list[int] = []

    def timed(precisions: object) -> Trial:
        asked.append(1)
        return Trial({"float32": float32, "bfloat16": bfloat16}, alone=True)

    patch.setattr(precision, "time_training", timed)
    return asked


@pytest.mark.parametrize(
    ("float32", "bfloat16", "chosen"), [(0.1, 0.05, "bfloat16"), (0.1, 0.4, "float32"), (0.1, 0.095, "float32")]
)
def test_the_faster_one(float32: float, bfloat16: float, chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with_times(monkeypatch, float32, bfloat16)
    best = best_training_precision()
    assert (best.name, best.dtype) == (chosen, getattr(torch, chosen))
    assert f"{1e3 * float32:.0f} ms" in best.reason and f"{1e3 * bfloat16:.0f} ms" in best.reason


def test_it_is_remembered_apart_from_that_of_answering(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = with_times(monkeypatch, 0.1, 0.05)
    monkeypatch.setattr(hardware, "time_requests", lambda _: Trial({"float32": 1.0, "bfloat16": 4.0}, alone=True))
    for _ in range(2):
        assert best_training_precision().name == "bfloat16"
        assert hardware.best_precision().name == "float32"
    assert len(asked) == 1 and "remembered" in best_training_precision().reason
    best_training_precision(remeasure=True)
    assert len(asked) == 2


def test_it_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = with_times(monkeypatch, 0.1, 0.05)
    assert best_training_precision("float32").reason == "float32, asked for"
    monkeypatch.setenv("PELLUCID_PRECISION", "float32")
    assert best_training_precision("auto").reason == "float32, set by PELLUCID_PRECISION"
    assert best_training_precision("bfloat16").name == "bfloat16"
    assert not asked
    with pytest.raises(InputError, match=r"'float16' \(asked for\) is none of auto, float32, bfloat16"):
        best_training_precision("float16")


def test_the_trial_takes_all_three_products_in_each_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "TRIAL_TOKENS", 16)
    seen: list[tuple[torch.dtype, torch.Size, torch.Size]] = []

    class Products(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if function is torch.ops.aten.mm.default:
                seen.append((args[0].dtype, args[0].shape, args[1].shape))
            return function(*args, **(kwargs or {}))

    with Products():
        trial = time_training(("float32", "bfloat16"))
    assert set(trial.seconds) == {"float32", "bfloat16"}
    assert all(0 < seconds < math.inf for seconds in trial.seconds.values())
    products = {((16, 512), (512, 2048)), ((16, 2048), (2048, 512)), ((2048, 16), (16, 512))}
    assert set(seen) == {(dtype, *shapes) for dtype in (torch.float32, torch.bfloat16) for shapes in products}
