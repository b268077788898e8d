"""`pellucid pretrain` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pellucid.cli import training as shared
from pellucid.cli.app import run as command
from pellucid.training.loop import Outcome
from tests.training.tiny_run import small, write_book, write_recipe

pytestmark = pytest.mark.usefixtures("one_thread")


def test_from_text_to_a_model_that_the_other_commands_take(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(tmp_path / "run")
    bands = [{"step": 40, "low": 0, "high": 9}, {"step": 60, "low": 8, "high": 9}]
    expect = {"loss": bands, "time": "3 s on two cores", "sample": "The cat saw the mill."}
    recipe = write_recipe(tmp_path, expect=expect, train={"sample_prompts": ["The cat"], "sample_tokens": 6})
    assert command(["pretrain", recipe, "train.save_every=30", "optim.lr=6e-3"]) == 0
    said = capsys.readouterr()
    first, *verdicts, memory, last = said.out.splitlines()
    assert first.startswith(f"{run}: 60 steps, 15,360 tokens, loss ") and " bits per byte" in first
    assert [line.split(",")[1].split(" the")[0] for line in verdicts] == [" inside", " below"]
    assert memory.startswith("at most ") and " MB of memory, " in memory
    assert last == f"Go on: pellucid generate {run} -p '...', pellucid show {run}; the curves are in {run}/loss.svg"
    told = said.err.splitlines()
    for line in ("expected time 3 s on two cores", "expected sample The cat saw the mill.", *verdicts):
        assert line in told
    for beginning in ("data ", "model ", "precision float32", "threads ", "compiled no", "step 40: validation loss "):
        assert any(line.startswith(beginning) for line in told), beginning
    assert any(line.startswith("  The cat…") for line in told)
    assert command(["show", run]) == 0 and command(["generate", run, "-p", "The cat", "--max-tokens", "4"]) == 0
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {
        "config.yaml", "metrics.jsonl", "samples.jsonl", "loss.svg", "checkpoints", "final", "tokenizer", "data",
    }  # fmt: skip
    capsys.readouterr()
    assert command(["pretrain", recipe, "train.save_every=30", "optim.lr=6e-3"]) == 0
    again = capsys.readouterr()
    assert "going on after step 60" in again.err and again.out.splitlines()[1:3] == verdicts


@pytest.mark.parametrize(
    ("overrides", "status", "message"),
    [
        (["optim.lrr=3"], 2, "there is no field 'optim.lrr' (did you mean 'lr'?)"),
        (["train.steps=many"], 2, "train.steps = 'many': input should be a valid integer"),
        (["data.train={empty}"], 2, "empty.txt"),
        (["data.train={binary}"], 2, "binary.txt"),
        (["data.train={short}"], 2, "gives only"),
        (["train.batch=999", "data.validation_fraction=0"], 2, "which do not fill one batch of 999"),
        (["data.train=gone.txt"], 2, "gone.txt: there is no such file or folder"),
        (["model.num_heads=5"], 2, "num_heads"),
    ],
)
def test_bad_input_is_one_line(
    overrides: list[str], status: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, content in (("empty", b""), ("binary", bytes(range(256)) * 40), ("short", b"A short one.")):
        (tmp_path / f"{name}.txt").write_bytes(content)
    recipe = write_recipe(tmp_path)
    places = {name: str(tmp_path / f"{name}.txt") for name in ("empty", "binary", "short")}
    assert command(["pretrain", recipe, *[text.format(**places) for text in overrides]]) == status
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0] and "this is a bug" not in errors[0]


def test_another_recipe_at_resume_shows_the_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(tmp_path, train={"steps": 12})
    assert command(["pretrain", recipe]) == 0
    assert command(["pretrain", recipe, "optim.lr=1", "train.batch=4"]) == 2
    assert "(optim.lr: 0.005 -> 1.0; train.batch: 8 -> 4): choose another run folder" in capsys.readouterr().err


def outcome(**changes: Any) -> Outcome:
    known: dict[str, Any] = {
        "steps": 7, "tokens": 70, "loss": 1.5, "validation": None, "signal": None, "seconds": 2.0, "memory": 5e8,
        "expected": ("step 5: loss 1.000, inside",),
    }  # fmt: skip
    return Outcome(**known | changes)


def test_how_a_run_ends_is_said_once(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert shared.finish(outcome(), "runs/a", "pellucid chat runs/a") == 0
    assert capsys.readouterr().out.splitlines() == [
        "runs/a: 7 steps, 70 tokens, loss 1.500",
        "step 5: loss 1.000, inside",
        "at most 500 MB of memory, 2 s of training",
        "Go on: pellucid chat runs/a, pellucid show runs/a; the curves are in runs/a/loss.svg",
    ]
    assert shared.finish(outcome(signal=15), "runs/a", "") == 143
    assert capsys.readouterr() == ("", "stopped after step 7 and saved: the same command goes on from there\n")
    monkeypatch.setenv("RANK", "1")
    assert shared.finish(outcome(), "runs/a", "") == 0 and shared.finish(outcome(signal=2), "runs/a", "") == 130
    assert capsys.readouterr() == ("", "")


def test_a_text_of_ones_own_by_the_packaged_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The line of the guide, made small."""
    write_book(tmp_path / "book.txt")
    line = ["pretrain", "recipes/pretrain-tiny.yaml", f"data.train={tmp_path}/book.txt", f"run={tmp_path}/run"]
    sizes = ["model.hidden_size=20", "model.num_layers=1", "tokenizer.vocab_size=300", "data.context=32"]
    assert command([*line, *sizes, "train.steps=41", "train.evaluate_every=41"]) == 0
    samples = [json.loads(line) for line in (tmp_path / "run/samples.jsonl").read_text().splitlines()]
    assert [sample["step"] for sample in samples] == [41] and small(tmp_path)["run"] in capsys.readouterr().out
