"""The loop: it learns, goes on as if never stopped, saves what it should, and tries the heaviest step first."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import pellucid
from pellucid.data.examples import IGNORE, Examples
from pellucid.errors import InputError, PellucidError
from pellucid.models.config import ModelConfig
from pellucid.models.decoder import Decoder
from pellucid.tokenizer.tokenizer import Tokenizer
from pellucid.training import loop
from pellucid.training.loop import Trainer
from pellucid.training.loss import next_token_loss
from pellucid.training.metrics import read_metrics
from pellucid.training.run import RunFolder, newest_checkpoint
from tests.disk import largest_file
from tests.training.tiny_run import COUNTS, SHAPE, Counting, recipe, trainer


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """tests/training/test_curves.py has them; drawing takes longer than these runs."""
    monkeypatch.setattr(loop, "write_curves", lambda *_: None)


def plan(**train: Any) -> Any:
    return recipe(**COUNTS | {"train": COUNTS["train"] | train})


def test_it_learns_to_count(tmp_path: Path) -> None:
    """From ln 272 to nearly nothing; validation too, and the model in final/ counts on."""
    with RunFolder.open(tmp_path / "run", plan()) as run:
        outcome = trainer(run, validation=Counting()).train()
    losses = [line["loss"] for line in read_metrics(run.path) if "loss" in line]
    assert losses[0] == pytest.approx(5.6, abs=0.3) and losses[-1] < 0.3 and len(losses) == 60
    assert outcome.steps == 60 and outcome.loss == losses[-1] and outcome.signal is None
    assert outcome.validation is not None and outcome.validation.loss < 0.3
    assert outcome.memory > 50e6 and outcome.seconds > 0
    model, _ = pellucid.load(run.path)
    said = model(torch.arange(5, 15)[None]).argmax(-1)[0]
    assert said[3:].tolist() == list(range(9, 16))
    about = json.loads((run.path / "final/config.json").read_text())["pellucid"]
    assert about["steps"] == 60 and about["tokens_seen"] == outcome.tokens and about["last_loss"] == losses[-1]


def test_the_figures_of_a_step(tmp_path: Path) -> None:
    rows = Counting()
    with RunFolder.open(tmp_path / "run", plan()) as run:
        trainer(run, rows, validation=Counting()).train()
    lines = [line for line in read_metrics(run.path) if "loss" in line]
    seen = 0
    for line in lines:
        batch = rows.read(range(4 * line["step"] - 4, 4 * line["step"]))
        seen += batch.real
        assert line["learnt"] == batch.supervised and line["tokens"] == seen
        assert 0 <= line["reading"] < line["seconds"] and line["gradient_norm"] > 0 and line["mfu"] is None
        assert line["tokens_per_second"] == pytest.approx(batch.real / line["seconds"])
    assert lines[0]["lr"] == pytest.approx(0.01 / 5) and max(line["lr"] for line in lines) <= 0.01
    assert [line["step"] for line in read_metrics(run.path) if "validation_loss" in line] == [20, 40, 60]


def test_the_batch_of_a_step_is_the_next_rows_whatever_happened_before(tmp_path: Path) -> None:
    """D1: each step reads its own rows, over epochs, after the trial that reads the first batch once more."""
    rows, again = Counting(), Counting()
    with RunFolder.open(tmp_path / "run", plan()) as run:
        trainer(run, rows).train()
    assert rows.log == [0, 1, 2, 3, *range(240)]
    keep_only(run.path, 40)
    with RunFolder.open(run.path, plan()) as run:
        trainer(run, again).train()
    assert again.log == [0, 1, 2, 3, *range(160, 240)]


def keep_only(run: Path, step: int) -> None:
    for folder in (run / "checkpoints").iterdir():
        if folder.name != f"step-{step}":
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_from_a_checkpoint_it_goes_on_bit_for_bit(optimizer: str, precision: torch.dtype, tmp_path: Path) -> None:
    content = COUNTS | {"optim": COUNTS["optim"] | {"optimizer": optimizer, "schedule": "wsd"}}
    asked = recipe(**content)
    results = []
    for _ in range(2):
        with RunFolder.open(tmp_path / "run", asked) as run:
            taught = trainer(run, recipe=asked, validation=Counting())
            taught.setting = taught.setting.__class__(torch.device("cpu"), precision, False, 1)
            outcome = taught.train()
        lines = [
            {k: v for k, v in line.items() if "second" not in k and k != "reading"} for line in read_metrics(run.path)
        ]
        files = [run.path / name for name in ("final/model.safetensors", "checkpoints/step-60/state.json")]
        results.append(([file.read_bytes() for file in files], lines, outcome.validation, outcome.tokens))
        keep_only(run.path, 40)
    assert results[0] == results[1]


class Spy:
    """An objective that writes down what it is given."""

    def __init__(self) -> None:
        self.learnt: list[int] = []

    def __call__(self, model: Decoder, examples: Examples) -> torch.Tensor:
        self.learnt.append(int((examples.targets != IGNORE).sum()))
        return next_token_loss(model, examples)


def test_the_heaviest_step_is_tried_before_the_first_and_leaves_no_trace(tmp_path: Path) -> None:
    """Promise D4: every token of the trial is learnt from; and the weights are those of a run without it."""
    weights = []
    for trial in (True, False):
        spy = Spy()
        with RunFolder.open(tmp_path / f"run{trial}", plan(steps=8)) as run:
            taught = trainer(run, recipe=plan(steps=8), objective=spy)
            if not trial:
                taught._preflight = lambda: None  # type: ignore[method-assign]
            taught.train()
        weights.append((run.path / "final/model.safetensors").read_bytes())
        steps = [Counting().read(range(4 * step, 4 * step + 4)).supervised for step in range(8)]
        assert spy.learnt == ([4 * 16] if trial else []) + steps
    assert weights[0] == weights[1]


def test_micro_batches_are_tried_as_they_will_be(tmp_path: Path) -> None:
    spy, asked = Spy(), plan(steps=8, micro_batch=1)
    with RunFolder.open(tmp_path / "run", asked) as run:
        trainer(run, recipe=asked, objective=spy).train()
    assert spy.learnt[:4] == [16] * 4 and len(spy.learnt) == 4 * 9


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_a_step_that_does_not_fit_is_said_before_the_first(error: Exception, tmp_path: Path) -> None:
    def objective(model: Decoder, examples: Examples) -> torch.Tensor:
        raise error

    with RunFolder.open(tmp_path / "run", plan()) as run, pytest.raises(PellucidError) as caught:
        trainer(run, recipe=plan(micro_batch=2), objective=objective).train()
    assert f"the memory does not hold a step of 2 rows of {plan().data.context} tokens" in str(caught.value)
    assert "lower train.micro_batch" in str(caught.value) and not read_metrics(run.path)


def test_another_error_in_the_trial_is_not_taken_for_that(tmp_path: Path) -> None:
    def objective(model: Decoder, examples: Examples) -> torch.Tensor:
        raise RuntimeError("shapes do not match")

    with RunFolder.open(tmp_path / "run", plan()) as run, pytest.raises(RuntimeError, match="shapes do not match"):
        trainer(run, objective=objective).train()


def test_a_signal_that_comes_while_saving_is_for_the_next_step(tmp_path: Path) -> None:
    """Whenever it comes, it is not lost, and where it stops, everything is saved."""

    class Interrupting(Trainer):
        def _save(self, progress: Any) -> None:
            super()._save(progress)
            if self.done == 20:
                os.kill(os.getpid(), signal.SIGTERM)

    with RunFolder.open(tmp_path / "run", plan()) as run:
        taught = trainer(run)
        taught.__class__ = Interrupting
        outcome = taught.train()
    assert (outcome.signal, outcome.steps) == (signal.SIGTERM, 21)
    newest = newest_checkpoint(run.path)
    assert newest is not None and newest.step == 21 and not (run.path / "final").exists()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_data_that_are_others_now_are_refused_at_resume(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path / "run", plan()) as run:
        trainer(run).train()
        taught = trainer(run)
        taught.data = "other numbers"
        with pytest.raises(InputError, match=r"the data hold other tokens now than when .*run was begun"):
            taught.train()


def test_samples_are_kept_by_step_and_cut_with_the_metrics(tmp_path: Path) -> None:
    """Texts may hold what other programs take for the end of a line."""
    texts = iter(f"a\N{LINE SEPARATOR}b\x85c\r\n{number}" for number in range(100))

    def sample(model: Decoder, tokenizer: Tokenizer, prompts: Sequence[str], tokens: int) -> list[str]:
        assert not model.training and tokens == 5
        return [next(texts) for _ in prompts]

    asked = plan(sample_prompts=["One ", "Two "], sample_tokens=5)
    for _ in range(2):
        with RunFolder.open(tmp_path / "run", asked) as run:
            taught = trainer(run, recipe=asked, sample=sample)
            taught.train()
            assert taught.model.training
        lines = [json.loads(line) for line in (run.path / "samples.jsonl").read_bytes().split(b"\n")[:-1]]
        assert [(line["step"], line["prompt"]) for line in lines] == [
            (step, prompt) for step in (20, 40, 60) for prompt in ("One ", "Two ")
        ]
        keep_only(run.path, 40)
    assert [line["text"][-1] for line in lines] == ["0", "1", "2", "3", "6", "7"]


def test_a_full_disk_while_saving_is_one_sentence_and_the_run_goes_on_later(tmp_path: Path) -> None:
    class Full(Trainer):
        def _save(self, progress: Any) -> None:
            if self.done < 40:
                super()._save(progress)
                return
            with largest_file(20_000):
                super()._save(progress)

    with RunFolder.open(tmp_path / "run", plan()) as run:
        taught = trainer(run)
        taught.__class__ = Full
        with pytest.raises(PellucidError, match=r"step-40 could not be written \(.*\); make room or choose"):
            taught.train()
    assert [path.name for path in (run.path / "checkpoints").iterdir()] == ["step-20"]
    with RunFolder.open(tmp_path / "run", plan()) as run:
        assert trainer(run).train().steps == 60


def test_a_checkpoint_with_a_file_missing_is_skipped_and_said(tmp_path: Path) -> None:
    asked = plan(keep=3)
    with RunFolder.open(tmp_path / "run", asked) as run:
        trainer(run, recipe=asked).train()
    whole = (run.path / "final/model.safetensors").read_bytes()
    (run.path / "checkpoints/step-60/state.safetensors").unlink()
    (run.path / "checkpoints/step-40/model.safetensors").unlink()
    rows = Counting()
    with RunFolder.open(tmp_path / "run", asked) as run, pytest.warns(UserWarning) as warned:
        trainer(run, rows, recipe=asked).train()
    assert [str(warning.message).split("checkpoints/")[1].split(",")[0] for warning in warned] == [
        "step-60 is passed over", "step-40 is passed over",
    ]  # fmt: skip
    assert rows.log[4] == 80 and (run.path / "final/model.safetensors").read_bytes() == whole


def test_activation_checkpointing_changes_no_bit_of_a_run(tmp_path: Path) -> None:
    weights = []
    for again in (False, True):
        asked = plan(steps=20, activation_checkpointing=again)
        with RunFolder.open(tmp_path / f"run{again}", asked) as run:
            trainer(run, recipe=asked, validation=Counting()).train()
        weights.append((run.path / "final/model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_bands_are_compared_on_the_way_and_at_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bands = [{"step": 10, "low": 0, "high": 9}, {"step": 60, "low": 3, "high": 4}, {"step": 99, "low": 0, "high": 1}]
    asked = recipe(**COUNTS, expect={"loss": bands})
    with RunFolder.open(tmp_path / "run", asked) as run:
        outcome = trainer(run, recipe=asked).train()
    assert [line.split(",")[1][:7] for line in outcome.expected] == [" inside", " below "]
    told = capsys.readouterr().err
    assert all(line in told for line in outcome.expected)


def test_what_a_run_that_has_ended_gives_again(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path / "run", plan()) as run:
        first = trainer(run).train()
        rows = Counting()
        again = trainer(run, rows).train()
    assert rows.log == [] and (again.steps, again.tokens, again.loss) == (first.steps, first.tokens, first.loss)


def test_a_model_of_another_shape_is_refused_at_resume(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path / "run", plan(steps=8)) as run:
        trainer(run, recipe=plan(steps=8)).train()
        other = Decoder(ModelConfig(**SHAPE | {"num_layers": 3}))
        with pytest.raises(InputError, match="a model of another config"):
            trainer(run, recipe=plan(steps=8), model=other).train()


def test_samples_that_the_disk_does_not_take_are_one_sentence(tmp_path: Path) -> None:
    asked = plan(sample_prompts=["One "])
    with RunFolder.open(tmp_path / "run", asked) as run:
        taught = trainer(run, recipe=asked)
        with largest_file(10), pytest.raises(PellucidError, match=r"samples.jsonl could not be written \(.*make room"):
            taught._keep_samples(run.path / "samples.jsonl", ["longer than the disk takes"])
