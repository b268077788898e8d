"""`pellucid prefer`: a person ranks at the terminal, a judge ranks, two models are compared."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pellucid.alignment.reward_model import RewardModel
from pellucid.checkpoints.save import save
from pellucid.cli import running
from pellucid.cli.app import run as command
from pellucid.cli.prefer import read_ranking
from pellucid.inference.engine import Engine
from pellucid.inference.params import SamplingParams
from pellucid.models.classifier import Classifier
from tests.checkpoints.tiny import CONFIGS, random_model, tiny_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

SHORT = ["--max-tokens", "24"]
ENDS = dict.fromkeys(tiny_tokenizer().stop_ids, 3.5)


class Ending(Engine):
    """Answers of a random model that come to an end."""

    def add(self, prompt: Sequence[int], params: SamplingParams, **given: Any) -> int:
        return super().add(prompt, params.with_({"logit_bias": ENDS, "min_tokens": 3}), **given)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, which every engine runs, prompts, a reward model and a rule."""
    model = random_model(CONFIGS["llama"])
    monkeypatch.setattr(
        running, "open_engine", lambda *_, **__: Ending(model, tiny_tokenizer(), max_sequences=8, native=False)
    )
    save(model, tiny_tokenizer(), tmp_path / "model")
    save(Classifier.of(model), tiny_tokenizer(), tmp_path / "reward")
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(text) + "\n" for text in ("one", "two", "three")))
    (tmp_path / "rule.py").write_text("def shorter(prompts, completions):\n    return [-len(c) for c in completions]\n")
    return tmp_path


def prefer(files: Path, *arguments: str) -> int:
    return command(["prefer", str(files / "model"), "--prompts", str(files / "prompts.jsonl"), *SHORT, *arguments])


def pairs(files: Path) -> list[dict]:
    return [json.loads(line) for line in (files / "p.jsonl").read_text().splitlines()]


def test_a_person_ranks_stops_and_goes_on(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["-o", str(files / "p.jsonl"), "-k", "3"]
    monkeypatch.setattr("sys.stdin", io.StringIO("2 1 4\n2 1 3\nq\n"))
    assert prefer(files, *arguments) == 0
    out = capsys.readouterr().out
    assert "Numbers from 1 to 3, each once at most" in out and "user: one" in out and "1 prompts judged, 3 pairs" in out
    shown = [part.split("\n[")[0].split("\n\nWhich")[0].strip() for part in out.split("] ")[1:4]]
    best, middle, worst = shown[1], shown[0], shown[2]
    said = [(one["chosen"][0]["content"], one["rejected"][0]["content"]) for one in pairs(files)]
    assert set(said) == {(best, middle), (best, worst), (middle, worst)}
    monkeypatch.setattr("sys.stdin", io.StringIO("s\n1\n"))
    assert prefer(files, *arguments) == 0
    captured = capsys.readouterr()
    assert "1 of 3 prompts are done already" in captured.err and "user: one" not in captured.out
    assert "2 prompts judged, 2 pairs, 1 prompts without a pair" in captured.out and len(pairs(files)) == 5
    assert {one["judge"] for one in pairs(files)} == {"person"}


def test_the_end_of_input_stops(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("1\n"))
    assert prefer(files, "-o", str(files / "p.jsonl")) == 0
    assert len(pairs(files)) == 1


def test_a_rule_and_a_reward_model_judge(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prefer(files, "-o", str(files / "p.jsonl"), "--judge", f"{files / 'rule.py'}:shorter", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["prompts"] == 3 and told["pairs"] == len(pairs(files))
    assert all(len(one["chosen"][0]["content"]) < len(one["rejected"][0]["content"]) for one in pairs(files))
    (files / "p.jsonl").unlink()
    (files / "p.jsonl.answers").unlink()
    assert prefer(files, "-o", str(files / "p.jsonl"), "--judge", str(files / "reward")) == 0
    judge = RewardModel.load(files / "reward")
    for one in pairs(files):
        better, worse = judge.score_messages([one["prompt"] + one["chosen"], one["prompt"] + one["rejected"]])
        assert better > worse


def test_two_models_are_compared(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    against = ["--against", str(files / "model"), "--judge", str(files / "reward")]
    assert prefer(files, *against) == 0
    out = capsys.readouterr().out  # the same answers
    assert "A wins 50.0% (95 % confidence interval" in out and "0 wins, 0 losses, 3 ties" in out
    assert prefer(files, *against, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["rate"] == 0.5 and told["low"] < 0.5 < told["high"] and told["ties"] == 3


def test_a_comparison_that_is_left_at_once_is_no_win_rate(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    models = {
        str(files / "model"): random_model(CONFIGS["llama"]),
        str(files / "reward"): random_model(CONFIGS["qwen2"]),
    }
    monkeypatch.setattr(
        running, "open_engine", lambda name, *_, **__: Ending(models[name], tiny_tokenizer(), native=False)
    )
    monkeypatch.setattr("sys.stdin", io.StringIO("q\n"))
    assert prefer(files, "--against", str(files / "reward")) == 1
    assert "person preferred no answer to another, so there is no win rate" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.StringIO("s\n1\nq\n"))
    assert prefer(files, "--against", str(files / "reward"), "--json") == 0
    told = json.loads("{" + capsys.readouterr().out.rpartition("{")[2])
    assert told["unsaid"] == 1 and told["ties"] == 0 and told["wins"] + told["losses"] == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give either -o FILE, to collect preferences, or --against MODEL"),
        (["-o", "x", "--against", "y"], "give either -o FILE"),
        (["--against", "nowhere"], "there is no model 'nowhere'"),
        (["-o", "x.jsonl", "--judge", "exakt"], r"there is no reward 'exakt' (did you mean 'exact'?)"),
        (["-o", "x.jsonl", "--judge", "https://"], "https:// is no address of a judge"),
        (["-o", "x.jsonl", "--top-p", "0"], "top_p = 0"),
    ],
)
def test_what_is_asked_wrongly_is_said_first(
    files: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prefer(files, *arguments) == 2
    assert said in capsys.readouterr().err and not Path("x.jsonl").exists()


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("2 1 3", [[1], [0], [2]]), ("213", [[1], [0], [2]]), ("2>1>3", [[1], [0], [2]]), ("2, 1", [[1], [0], [2]]),
        ("2", [[1], [0, 2]]), ("1=3", [[0, 2], [1]]), ("2 1=3", [[1], [0, 2]]), ("0", [[0, 1, 2]]), ("", None),
        ("4", None), ("1 1", None), ("11", None), ("x", None), ("1=", None), ("-1", None),
    ],
)  # fmt: skip
def test_rankings_are_read(text: str, groups: list[list[int]] | None) -> None:
    assert read_ranking(text, 3) == groups
