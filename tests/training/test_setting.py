"""What a run computes on and how: chosen once, said, kept by whoever goes on."""

from __future__ import annotations

import os
import warnings
from typing import Any

import pytest
import torch

from pellucid.errors import InputError
from pellucid.models.config import ModelConfig
from pellucid.operations.hardware import CANDIDATES
from pellucid.training import setting as module
from pellucid.training.ranks import Ranks
from pellucid.training.setting import Setting, choose_setting
from tests.training.tiny_run import SHAPE, recipe

CONFIG = ModelConfig(**SHAPE)


def choose(recorded: Any = None, steps: int = 100, ranks: Ranks | None = None, **fields: Any) -> Setting:
    return choose_setting(recipe(**fields), CONFIG, steps, ranks or Ranks(), recorded)


@pytest.fixture(autouse=True)
def threads_as_before() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_what_is_asked_for_is_taken_and_what_is_chosen_is_explained() -> None:
    found = choose(precision="bfloat16", compile="off")
    assert found.dtype == found.autocast == torch.bfloat16 and not found.compiled
    assert found.device.type == "cpu" and found.ceiling is not None and found.ceiling > 0
    assert found.threads == torch.get_num_threads() and found.processes == 1
    assert (
        found.reasons[0] == "precision bfloat16, asked for" and found.reasons[2] == "compiled no: the recipe says off"
    )
    assert found.reasons[1].startswith(f"threads {found.threads}")
    measured = choose()
    assert str(measured.dtype).removeprefix("torch.") in CANDIDATES
    assert choose(precision="float32").autocast is None


def test_the_choice_goes_with_the_run() -> None:
    """Even where this machine would choose otherwise."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for precision in CANDIDATES:
            recorded = {"precision": precision, "compiled": False, "threads": 1, "processes": 1}
            found = choose(recorded, compile="auto")
            assert found.as_json() == recorded and torch.get_num_threads() == 1
            assert found.reasons[0] == f"precision {precision}, as the run began"
            assert choose(found.as_json()).as_json() == recorded


@pytest.mark.parametrize("changed", [{"threads": 4096}, {"processes": 2}])
def test_threads_that_do_not_fit_here_are_chosen_anew_and_said(changed: dict[str, int]) -> None:
    recorded = {"precision": "float32", "compiled": False, "threads": 1, "processes": 1} | changed
    with pytest.warns(UserWarning, match="so its numbers may differ in the last bits"):
        found = choose(recorded)
    assert found.threads <= (os.cpu_count() or 1) and found.processes == 1


def test_compiling_that_cannot_be_is_refused_and_that_does_not_pay_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "too short for it to pay" in choose(precision="float32").reasons[2]
    monkeypatch.setattr(module, "WORTH_COMPILING", 0.0)
    monkeypatch.setattr(module, "why_not_compile", lambda _: None)
    assert choose(precision="float32").compiled and choose(precision="float32", compile="on").compiled
    monkeypatch.setattr(module, "why_not_compile", lambda _: "there is no C++ compiler")
    assert not choose(precision="float32").compiled
    with pytest.raises(
        InputError, match=r"compile = on, but there is no C\+\+ compiler: install one, or set compile=off"
    ):
        choose(precision="float32", compile="on")
    recorded = {"precision": "float32", "compiled": True, "threads": 1, "processes": 1}
    with pytest.raises(InputError, match="the run began compiled, but now there is no"):
        choose(recorded, compile="auto")
    monkeypatch.setattr(module, "why_not_compile", lambda _: None)
    assert choose(recorded, compile="auto").reasons[2] == "compiled yes: as the run began"


def test_no_compiler_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert module.why_not_compile(torch.device("cpu")) == "there is no C++ compiler"


def test_all_processes_take_the_precision_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    class Second(Ranks):
        def agree(self, value: int | None) -> int | None:
            assert value is None
            return CANDIDATES.index("bfloat16")

    assert choose(ranks=Second(1, 2), precision="float32").dtype == torch.bfloat16
