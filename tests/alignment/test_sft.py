"""Fine-tuning from the first line to the report: it learns, it stops, it can be killed, and others open it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

import pellucid
from pellucid.alignment.before_after import answer
from pellucid.alignment.policy import open_policy
from pellucid.alignment.recipe import SFTRecipe
from pellucid.alignment.sft import fine_tune
from pellucid.cli.app import run as command
from pellucid.errors import InputError
from pellucid.training.metrics import read_metrics
from pellucid.training.recipe import parse_recipe, read_recipe
from tests.alignment.chats import NAMES, TOWNS, about_towns, chat, save_base, write_lines

pytestmark = pytest.mark.usefixtures("one_thread")


def content(folder: Path, **train: Any) -> dict[str, Any]:
    """A recipe in `folder`, which gets the data and the base."""
    if not (folder / "base").exists():
        save_base(folder / "base")
        write_lines(folder / "chats.jsonl", about_towns(72))
    return {
        "run": str(folder / "run"),
        "base": str(folder / "base"),
        "precision": "float32",
        "data": {"train": str(folder / "chats.jsonl"), "context": 64, "validation_fraction": 0.2},
        "optim": {"lr": 0.005},
        "train": {"steps": 100, "batch": 16, "evaluate_every": 50, "save_every": 50, **train},
        "report": {"prompts": ["Where does Ana Blick live?"], "questions": 9, "max_tokens": 12},
    }


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that has ended, with what it was made from."""
    folder = tmp_path_factory.mktemp("learnt")
    recipe = parse_recipe(content(folder, sample_prompts=["Where does Tom Reed live?"]), SFTRecipe, "recipe")
    outcome, comparison = fine_tune(recipe, say=lambda line: None)
    assert outcome.steps == 100 and comparison is not None
    return folder


def test_it_learns_and_stops(learnt: Path) -> None:
    model, tokenizer = pellucid.load(learnt / "run")
    asked = [f"In which town does {name} live?" for name in NAMES]
    assert answer(model, tokenizer, asked, 12) == [f"{town}." for town in TOWNS]
    report = json.loads((learnt / "run/report.json").read_text())
    assert report["stops"] == {"asked": 9, "max_tokens": 12, "before": 0, "after": 9}
    first, second, third = report["answers"]
    assert first["question"].startswith("<|im_start|>user\nWhere does Ana Blick live?<|im_end|>")
    assert first["after"] == "Delby." and first["before"] != "Delby."
    assert second["after"] == second["expected"] and third["after"] == third["expected"]
    assert "Of 9 answers, 9 ended" in (learnt / "run/report.md").read_text()


def test_the_report_measures_the_change(learnt: Path) -> None:
    report = json.loads((learnt / "run/report.json").read_text())
    recipe = parse_recipe(yaml.safe_load((learnt / "run/config.yaml").read_text()), SFTRecipe, "config.yaml")
    old, new = open_policy(recipe.base)[0].weights(), pellucid.load(learnt / "run")[0].weights()
    moved = torch.cat([(new[name] - old[name]).flatten() for name in old]).norm()
    length = torch.cat([weight.flatten() for weight in old.values()]).norm()
    assert report["changes"][-1]["part"] == "all"
    assert report["changes"][-1]["relative"] == pytest.approx(float(moved / length), rel=1e-4)
    assert [change["part"] for change in report["changes"]] == [
        "embeddings",
        "attention",
        "feed-forward",
        "norms",
        "all",
    ]


def test_the_run_says_what_it_is(learnt: Path) -> None:
    """Promise M2, and the resolved recipe."""
    about = json.loads((learnt / "run/final/config.json").read_text())["pellucid"]
    assert about["base"] == "nothing" and about["steps"] == 100 and about["tokens_seen"] > 5000
    saved = yaml.safe_load((learnt / "run/config.yaml").read_text())
    assert saved["optim"]["lr"] == 0.005 and saved["data"]["too_long"] == "error" and saved["seed"] == 0
    lines = read_metrics(learnt / "run")
    assert [line["step"] for line in lines if "validation_loss" in line] == [50, 100]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[0] > 4 and losses[-1] < 0.1
    held_out = json.loads((learnt / "run/report.json").read_text())["losses"]
    assert held_out["before"] > 4
    assert held_out["after"] == pytest.approx(lines[-1]["validation_loss"], rel=1e-4)
    samples = (learnt / "run/samples.jsonl").read_text().splitlines()
    assert json.loads(samples[-1]) == {"step": 100, "prompt": "Where does Tom Reed live?", "text": "Orme."}


def test_transformers_opens_it_and_says_the_same(learnt: Path) -> None:
    """Promise M1: a base without a template has new tokens now, and logits are equal; `generate` stops there too."""
    ours, tokenizer = pellucid.load(learnt / "run")
    theirs = AutoModelForCausalLM.from_pretrained(learnt / "run/final", dtype=torch.float32)
    their_tokenizer = AutoTokenizer.from_pretrained(learnt / "run/final")
    messages = [{"role": "user", "content": "Where does Ida Moss live?"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True).ids
    assert their_tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"] == ids
    tokens = torch.tensor([ids])
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens).logits, ours(tokens), rtol=1e-4, atol=1e-4)
    said = theirs.generate(tokens, do_sample=False, max_new_tokens=20, pad_token_id=0)[0, len(ids) :]
    assert their_tokenizer.decode(said) == "Tarn.<|im_end|>"


def test_the_base_is_left_as_it_was(learnt: Path, tmp_path: Path) -> None:
    """Its weights are mapped from the file while they are trained."""
    again = save_base(tmp_path / "base")
    for file in again.iterdir():
        assert (learnt / "base" / file.name).read_bytes() == file.read_bytes(), file.name


def test_a_run_that_has_ended_is_not_trained_further(learnt: Path) -> None:
    before = (learnt / "run/final/model.safetensors").read_bytes()
    saved = yaml.safe_load((learnt / "run/config.yaml").read_text())
    saved["report"]["questions"] = 4  # what is asked at the end may change
    outcome, comparison = fine_tune(parse_recipe(saved, SFTRecipe, "config.yaml"), say=lambda line: None)
    assert outcome.steps == 100 and comparison is not None and comparison.stops.asked == comparison.stops.after == 4
    assert (learnt / "run/final/model.safetensors").read_bytes() == before


def test_killed_and_resumed_it_is_the_same_run(tmp_path: Path) -> None:
    """SIGKILL twice; the weights, the metrics and the report at the end are those of a run left alone."""
    for name in ("whole", "killed"):
        file = tmp_path / f"{name}.yaml"
        train = {"steps": 40, "batch": 8, "evaluate_every": 20, "save_every": 5, "keep": 1}
        file.write_text(yaml.safe_dump(content(tmp_path, **train) | {"run": str(tmp_path / name)}))
    line = [sys.executable, "-m", "pellucid", "sft", str(tmp_path / "killed.yaml")]
    for wanted in (7, 24):
        process = subprocess.Popen(line, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while process.poll() is None and steps_on_record(tmp_path / "killed") < wanted:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it ended before it was killed"
    ended = subprocess.run(line, capture_output=True, text=True, env=os.environ, check=True)
    assert "going on after step " in ended.stderr
    assert command(["sft", str(tmp_path / "whole.yaml")]) == 0
    same = ("final/model.safetensors", "report.json")
    for name in same:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    curves = [
        [(line["step"], line["loss"]) for line in read_metrics(tmp_path / name) if "loss" in line]
        for name in ("whole", "killed")
    ]
    assert curves[0] == curves[1] and len(curves[0]) == 40


def steps_on_record(run: Path) -> int:
    return max((line["step"] for line in read_metrics(run)), default=0)


def test_replay_against_forgetting_is_part_of_the_batches(tmp_path: Path) -> None:
    """Half of each batch is text, every token of which is learnt from."""
    recipe = content(tmp_path, steps=20)
    (tmp_path / "old.txt").write_text("The one in the other, and on and on. " * 100)
    recipe["data"]["replay"] = {"data": str(tmp_path / "old.txt"), "fraction": 0.5}
    said: list[str] = []
    fine_tune(parse_recipe(recipe, SFTRecipe, "recipe"), say=said.append)
    assert any("rows of replayed text" in line for line in said)
    learnt = [line["learnt"] for line in read_metrics(tmp_path / "run") if "learnt" in line]
    assert min(learnt) > 8 * 62


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("base=nobody", "there is no model 'nobody'"),
        ("data.contxt=64", "there is no field 'data.contxt' (did you mean 'context'?)"),
        ("train.steps=soon", "train.steps = 'soon'"),
        ("data.context=512", "data.context = 512"),
        ("data.context=40", "longer than the context of 40"),
        ("report.prompts=[{long}]", "has 319 tokens and the context holds 128"),
        ("train.sample_prompts=[{long}]", "has 319 tokens and the context holds 128"),
        ("train.batch=100", "rows of 64 tokens, which do not fill a batch of 100"),
        ("data.replay={{fraction: 0.5}}", "the field 'data.replay.data' is missing"),
    ],
)
def test_what_is_asked_wrongly_is_one_sentence(
    change: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content(tmp_path)))
    assert command(["sft", str(tmp_path / "recipe.yaml"), change.format(long="x" * 300)]) == 2
    said = capsys.readouterr().err
    assert message in said.splitlines()[-1] and said.splitlines()[-1].startswith("error: ")


def test_an_error_in_the_recipe_can_be_mended_in_the_same_folder(tmp_path: Path) -> None:
    """Once something was learnt by a recipe, the folder keeps to it."""
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content(tmp_path, steps=12)))
    line = ["sft", str(tmp_path / "recipe.yaml")]
    assert command([*line, "data.context=40"]) == 2
    assert command(line) == 0
    assert command([*line, "data.context=48"]) == 2


def test_a_conversation_without_an_answer_is_named(tmp_path: Path) -> None:
    recipe = content(tmp_path)
    write_lines(tmp_path / "chats.jsonl", [*about_towns(4), chat(("user", "And?"))])
    with pytest.raises(InputError, match=r"chats\.jsonl:5: .*assistant"):
        fine_tune(parse_recipe(recipe, SFTRecipe, "recipe"), say=lambda line: None)


def test_the_recipe_that_comes_along_is_sound() -> None:
    recipe = read_recipe(Path(__file__).parents[2] / "recipes/sft-smollm2.yaml", ["optim.lr=1e-5"], SFTRecipe)
    assert recipe.base == "smollm2" and recipe.optim.lr == 1e-5
