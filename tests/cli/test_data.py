"""`pellucid data`, as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pellucid.cli import app as frame
from pellucid.cli import data as data_cli
from pellucid.data.packing import Stream
from pellucid.tokenizer.train import train_bpe
from pellucid.training.pretrain import read_data
from pellucid.training.ranks import Ranks
from pellucid.training.recipe import PretrainRecipe, read_recipe
from pellucid.training.run import RunFolder
from tests.alignment.pairs import content as preference_content

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = frame.run(["data", *map(str, arguments)])
    out, err = capsys.readouterr()
    return status, out, err


def conversation(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return write(tmp_path / "good.jsonl", [conversation(f"who is {n}?", "the baker.") for n in range(5)])


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """A folder with a tokenizer that has no chat template."""
    trained = train_bpe(["who is the baker? the baker is ada. "], 270, special_tokens=SPECIALS)
    (tmp_path / "tok").mkdir()
    trained.tokenizer().save(tmp_path / "tok")
    return tmp_path / "tok"


def test_check(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "check", good)
    assert status == 0 and not err
    assert out.splitlines() == [
        "1 file: 5 in the format messages",
        "10 messages: 5 user, 5 assistant",
        "95 characters",
        "no problem found",
    ]


def test_check_counts_tokens(good: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "check", good, "--model", tokenizer, "--context", 40)
    assert status == 0 and "no chat template" in err and "ChatML" in err
    assert "of them supervised" in out and "the longest" in out and "longer than 40: 0 of 5" in out
    status, out, _ = run(capsys, "check", good, "--model", tokenizer, "--context", 10)
    assert status == 2 and "longer than the context: 5" in out and "and 2 more" in out and "data.too_long=drop" in out


def test_check_tells_every_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [conversation("q", "a"), conversation("q", ""), {"text": "once"}, conversation("q", "a")]
    path = write(tmp_path / "rows.jsonl", rows)
    path.write_bytes(path.read_bytes() + b"{]\n")
    status, out, err = run(capsys, "check", path)
    assert status == 2 and not err
    assert "empty turn: 1\n" in out and f"{path}:2: message 2 (assistant) is empty" in out
    assert "mixed formats: 1\n" in out and "invalid JSON: 1\n" in out and "1 duplicate: " in out
    status, out, _ = run(capsys, "check", path, "--json")
    report = json.loads(out)
    assert status == 2 and report["formats"] == {"messages": 2} and report["duplicates"]["count"] == 1
    assert {reason: one["count"] for reason, one in report["problems"].items()} == {
        "empty turn": 1,
        "mixed formats": 1,
        "invalid JSON": 1,
    }
    assert run(capsys, "check", path, "--skip-bad")[0] == 0


def test_check_for_a_purpose(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "check", good, "--for", "conversation")[0] == 0
    status, out, _ = run(capsys, "check", good, "--for", "text", "--skip-bad")
    assert status == 2 and "conversations are for pellucid sft" in out and "no good record" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.jsonl"], "absent.jsonl: there is no such file or folder"),
        (["bundled:union"], "there are bundled:state-of-the-union"),
        (["good.jsonl", "--context", "9"], "say whose with --model"),
        (["good.jsonl", "--for", "chat"], "'chat' is not one of 'text', 'conversation', 'preference'"),
        (["good.jsonl", "--model", "smolm2"], "did you mean 'smollm2'"),
    ],
)
def test_bad_requests(
    arguments: list[str],
    message: str,
    good: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(good.parent)
    status, out, err = run(capsys, "check", *arguments)
    assert status == 2 and message in err and err.count("\n") == 1 and not out


def test_a_sign_of_life(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Promise E6."""
    monkeypatch.setattr(data_cli, "HEARTBEAT", 0)
    path = write(tmp_path / "rows.jsonl", [{"text": f"line {n}"} for n in range(250)])
    status, _, err = run(capsys, "check", path)
    assert status == 0 and err == "100 records read\n200 records read\n"


def test_show_a_fine_tuning_recipe(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Promise D6: what is between the marks is the assistant's words and the end of its turn, and nothing else."""
    recipe = {"run": "run", "base": "smollm2", "data": {"train": str(good), "context": 100}, "train": {"steps": 1}}
    (tmp_path / "sft.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.chdir(tmp_path)
    status, out, err = run(capsys, "show", "sft.yaml", "data.validation_fraction=0", "-n", 3)
    assert status == 0 and "rows of 100 tokens" in err and "kept: messages (5)" in err
    assert out.startswith("row 0: 100 tokens") and "\nrow 1: 100 tokens" in out
    assert out.count("── document 1 of 2: ") == 2 and "── document 2 of 2: " in out and "document 1 of 1" in out
    marked = [part.split("⟧")[0] for part in out.split("⟦")[1:]]
    assert marked == ["the baker.<|im_end|>"] * 5 and out.count("who is") == 5
    learnt = int(out.split("learnt from (")[0].split()[-1])
    assert f"in all 300 tokens: {learnt} learnt from" in out.splitlines()[-1]
    again = run(capsys, "show", "sft.yaml", "data.validation_fraction=0", "-n", 1, "--first", 1)
    assert again[0] == 0 and again[1].splitlines()[0] == next(x for x in out.splitlines() if x.startswith("row 1"))


@pytest.mark.parametrize(
    ("recipe", "overrides", "message"),
    [
        ("absent.yaml", [], "absent.yaml: there is no such recipe"),
        ("sft.yaml", ["data.contxt=3"], "there is no field 'data.contxt' (did you mean 'context'?)"),
        ("sft.yaml", ["data.context=8"], "longer than the context of 8"),
        ("sft.yaml", ["data.train=absent.jsonl"], "absent.jsonl: there is no such file"),
        ("sft.yaml", ["grpo.clip=0.2"], "the answers that pellucid grpo learns from are drawn while it runs"),
    ],
)
def test_show_bad_requests(
    recipe: str,
    overrides: list[str],
    message: str,
    good: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    content = {"run": "run", "base": "smollm2", "data": {"train": str(good)}, "train": {"steps": 1}}
    (good.parent / "sft.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.chdir(good.parent)
    status, out, err = run(capsys, "show", recipe, *overrides)
    assert status == 2 and message in err and not out


def test_show_a_pretraining_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every token but the first of a document is learnt from, the one after the row too; they are the run's rows."""
    stories = [
        f"The baker number {n} bakes bread in the town of Delby, and everybody there knows it." for n in range(40)
    ]
    (tmp_path / "stories.txt").write_text("\n<|endoftext|>\n".join(stories))
    recipe = {
        "run": "run",
        "data": {"train": "stories.txt", "context": 64, "validation_fraction": 0},
        "tokenizer": {"vocab_size": 300},
        "model": {"hidden_size": 8, "num_layers": 1, "num_heads": 1, "intermediate_size": 8},
        "train": {"steps": 1},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.chdir(tmp_path)
    status, out, err = run(capsys, "show", "recipe.yaml", "-n", 2)
    assert status == 0 and "kept: text (40)" in err
    assert "<|endoftext|>⟧" in out and "── document 2 of " in out and " bakes bread" in out
    assert not (tmp_path / "run").exists()  # looking leaves nothing behind
    read = read_recipe("recipe.yaml", (), PretrainRecipe)
    RunFolder.open("run", read).close()
    tokenizer, shards, _ = read_data(read, Ranks(), print, None)
    rows = Stream(shards, 64, 0).read([0, 1])
    assert tokenizer.decode(rows.tokens[0, :8].tolist()).split("<|endoftext|>")[0] in out.replace("⟦", "")
    total = f"in all 128 tokens: {rows.supervised} learnt from ({rows.supervised / 128:.0%}), 0 padding"
    assert out.splitlines()[-1] == total
    capsys.readouterr()
    assert run(capsys, "show", "recipe.yaml", "-n", 2)[1] == out  # from the folder of the run
    monkeypatch.setattr("pellucid.data.prepared.tokenise", None)
    assert run(capsys, "show", "recipe.yaml", "-n", 2)[1] == out  # in which nothing was made anew
    assert run(capsys, "show", "recipe.yaml", "seed=1")[0] == 1  # another recipe finds nothing there


def test_world(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "world"
    status, out, _ = run(capsys, "world", "--people", 12, "--tellings", 3, "-o", folder)
    assert status == 0 and out.startswith(f"{folder}: 12 people; ")
    assert run(capsys, "check", folder / "documents.jsonl", "--for", "text")[0] == 0
    assert run(capsys, "check", folder / "conversations.jsonl", "--for", "conversation")[0] == 0
    assert run(capsys, "check", folder / "preferences.jsonl", "--for", "preference")[0] == 0
    questions = [json.loads(line) for line in (folder / "questions.jsonl").read_text("utf-8").splitlines()]
    assert {question["people"] for question in questions} == {"train", "held out"}
    assert any(question["answer"] is None for question in questions)
    facts = [json.loads(line) for line in (folder / "facts.jsonl").read_text("utf-8").splitlines()]
    told = {(fact["subject"], fact["relation"]): fact["value"] for fact in facts}
    asked = [question for question in questions if question["answer"] is not None]
    assert asked and all(told[question["subject"], question["relation"]] == question["answer"] for question in asked)
    before = (folder / "documents.jsonl").read_bytes()
    assert run(capsys, "world", "--people", 12, "--tellings", 3, "-o", folder)[0] == 0  # again: the same
    assert (folder / "documents.jsonl").read_bytes() == before


def test_world_replaces_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    status, _, err = run(capsys, "world", "--people", 12, "-o", tmp_path)
    assert (
        status == 2 and "'thesis.txt', so it is not just a world's texts" in err and (tmp_path / "thesis.txt").exists()
    )


def test_show_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The better answer and the worse one of each pair, what is learnt from marked (D6)."""
    recipe = tmp_path / "dpo.yaml"
    recipe.write_text(yaml.safe_dump(preference_content(tmp_path, dpo={"loss": "ipo"})))
    status, out, err = run(capsys, "show", recipe, "-n", 1)
    assert status == 0 and "kept: preferences (108)" in err, err
    lines = out.splitlines()
    assert lines[1].startswith("── pair 1 of 1, chosen: ") and any(line.endswith("?<|im_end|>⟧") for line in lines)
    worse = next(number for number, line in enumerate(lines) if line.startswith("── pair 1 of 1, rejected: "))
    assert any(line.startswith("⟦") and line.endswith(".<|im_end|>⟧") for line in lines[:worse])
    assert any(line.startswith("⟦") and line.endswith("?<|im_end|>⟧") for line in lines[worse:])


def test_check_tells_the_lengths_of_both_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = preference_content(tmp_path)
    status, out, _ = run(capsys, "check", content["data"]["train"], "--model", content["base"])
    assert status == 0 and "108 pairs; tokens of an answer on average: chosen " in out
    assert "the chosen one is the longer in 50% (equal counts half)" in out
    report = json.loads(run(capsys, "check", content["data"]["train"], "--model", content["base"], "--json")[1])
    assert report["pairs"]["count"] == 108 and report["pairs"]["chosen_longer"] == 0.5
