"""From a text to a model; and what a text, a model or a folder cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

import pellucid
from pellucid.data import shards
from pellucid.errors import InputError, PellucidError
from pellucid.tokenizer.tokenizer import Tokenizer
from pellucid.training import loop
from pellucid.training.metrics import read_metrics
from pellucid.training.pretrain import pretrain
from pellucid.training.recipe import PretrainRecipe, parse_recipe
from pellucid.training.run import RunFolder
from tests.checkpoints.tiny import tiny_tokenizer
from tests.training.tiny_run import small, write_book

pytestmark = pytest.mark.usefixtures("one_thread")


def made(content: dict[str, Any]) -> PretrainRecipe:
    return parse_recipe(content, PretrainRecipe, "recipe")


def quietly(content: dict[str, Any], **named: Any) -> loop.Outcome:
    return pretrain(made(content), say=lambda _: None, **named)


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that has ended."""
    folder = tmp_path_factory.mktemp("learnt")
    quietly(small(folder, train={"steps": 150, "evaluate_every": 50, "save_every": 50}))
    return folder / "run"


def test_it_learns(learnt: Path) -> None:
    losses = [line["loss"] for line in read_metrics(learnt) if "loss" in line]
    held = [line["validation_bits_per_byte"] for line in read_metrics(learnt) if "validation_loss" in line]
    assert losses[0] > 5 and losses[-1] < 2.2 and held == sorted(held, reverse=True) and held[-1] < 1.0
    assert "<svg" in (learnt / "loss.svg").read_text()


def test_transformers_opens_it_and_says_the_same(learnt: Path) -> None:
    """Promises M1 and M2."""
    model, tokenizer = pellucid.load(learnt)
    theirs = AutoModelForCausalLM.from_pretrained(learnt / "final", dtype=torch.float32)
    text = "The cat sat on the mill."
    ids = AutoTokenizer.from_pretrained(learnt / "final")(text)["input_ids"]
    assert ids == tokenizer.encode(text, add_bos=tokenizer.adds_bos)
    with torch.no_grad():
        torch.testing.assert_close(theirs(torch.tensor([ids])).logits, model(torch.tensor([ids])), rtol=1e-4, atol=1e-4)
    about = json.loads((learnt / "final/config.json").read_text())["pellucid"]
    assert about["steps"] == 150 and about["tokens_seen"] == 150 * 8 * 32 and about["last_loss"] < 2.2


def test_the_recipe_is_kept_with_the_run(learnt: Path) -> None:
    kept = yaml.safe_load((learnt / "config.yaml").read_text())
    assert made(kept) == made(small(learnt.parent, train={"steps": 150, "evaluate_every": 50, "save_every": 50}))
    assert kept["optim"]["weight_decay"] == 0.1


def test_epochs_are_steps(tmp_path: Path) -> None:
    write_book(tmp_path / "book.txt", 20)
    outcome = quietly(small(tmp_path, train={"steps": None, "epochs": 1.5}))
    rows = shards.open_shards(tmp_path / "run/data/train").num_tokens * 0.9 / 32
    assert outcome.steps == pytest.approx(1.5 * rows / 8, abs=2)


def test_a_tokenizer_that_is_there_is_taken_as_it_is(tmp_path: Path) -> None:
    tiny_tokenizer().save(tmp_path / "given")
    quietly(small(tmp_path, tokenizer={"path": str(tmp_path / "given")}, train={"steps": 6}))
    assert Tokenizer.load(tmp_path / "run/final").definition == Tokenizer.load(tmp_path / "given").definition
    assert not (tmp_path / "run/tokenizer").exists()


def test_validation_text_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "held.txt").write_text("The moon sang to the stone. " * 200)
    told: list[str] = []
    recipe = made(small(tmp_path, data={"validation": str(tmp_path / "held.txt")}, train={"steps": 20}))
    pretrain(recipe, say=told.append)
    held = shards.open_shards(tmp_path / "run/data/validation").num_tokens
    assert any(line.endswith(f"{held:,} for validation") for line in told)


def test_without_validation_text_there_is_none(tmp_path: Path) -> None:
    told: list[str] = []
    outcome = pretrain(made(small(tmp_path, data={"validation_fraction": 0}, train={"steps": 6})), say=told.append)
    assert outcome.validation is None and any(line.endswith("none for validation") for line in told)


BAD: list[tuple[dict[str, Any], bytes | None, str]] = [
    ({}, b"", "empty"),
    ({}, b"\x00\x01\xff\xfe" * 1000, "text"),
    ({}, b"Once upon a time", r"vocab_size = 280: the text \(16 characters\) gives only 12 merges"),
    ({"data": {"context": 99_999}}, None, r"do not fill one row of 99999: give more text, or a smaller data\.context"),
    (
        {"train": {"batch": 500}, "data": {"validation_fraction": 0}}, None,
        r"\d+ rows of 32 tokens, which do not fill one batch of 500: give more text, or a smaller train\.batch",
    ),
    ({"data": {"train": "gone.txt"}}, None, r"gone\.txt: there is no such file or folder"),
    ({"optim": {"warmup": 60}}, None, r"optim\.warmup = 60 .*lower it, or train longer"),
    ({"model": {"hidden_size": 33}}, None, "hidden_size = 33"),
    ({"model": {"hiden_size": 33}}, None, r"no field 'hiden_size' \(did you mean 'hidden_size'\?\)"),
    ({"model": {"vocab_size": 33}}, None, r"model\.vocab_size follows the tokenizer"),
    ({"model": {"max_positions": 16}}, None, r"model\.max_positions = 16 is less than data\.context = 32"),
    ({"tokenizer": {"path": "nobody"}}, None, "there is no model 'nobody'"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "text", "message"), BAD)
def test_what_cannot_be_is_one_sentence_and_can_be_mended_in_the_same_folder(
    changes: dict[str, Any], text: bytes | None, message: str, tmp_path: Path
) -> None:
    content = small(tmp_path, **changes)
    if text is not None:
        (tmp_path / "book.txt").write_bytes(text)
    with pytest.raises(InputError, match=message) as caught:
        quietly(content)
    assert "\n" not in str(caught.value) and caught.value.exit_status == 2
    write_book(tmp_path / "book.txt", 20)
    assert quietly(small(tmp_path, train={"steps": 6})).steps == 6


def test_shards_that_change_under_a_run_stop_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the shard's name; and what was learnt before goes on when it is made again."""
    content, log = small(tmp_path), loop.Metrics.log

    def meddle(self: Any, step: int, **values: Any) -> None:
        log(self, step, **values)
        if step == 15:
            file = next((tmp_path / "run/data/train").glob("*.tokens"))
            changed = bytearray(file.read_bytes())
            changed[100:104] = b"\1\0\1\0"
            file.write_bytes(changed)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Metrics, "log", meddle)
        with pytest.raises(PellucidError, match=r"shard-00000\.tokens was changed or removed while it was being read"):
            quietly(content)
    with pytest.raises(PellucidError, match=r"shard-00000\.tokens: the file is damaged"):
        quietly(content)
    for file in (tmp_path / "run/data/train").iterdir():
        file.unlink()
    (tmp_path / "run/data/train").rmdir()
    assert quietly(content).steps == 60


def test_other_text_under_the_same_name_is_refused_at_resume(tmp_path: Path) -> None:
    """Touched but not changed, it is the same text."""
    content = small(tmp_path, train={"steps": 20, "save_every": 10})
    quietly(content)
    (tmp_path / "book.txt").touch()
    assert quietly(content).steps == 20
    write_book(tmp_path / "book.txt", 90)
    with pytest.raises(InputError, match=r"the data hold other tokens now"):
        quietly(content)


def test_a_second_run_into_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    content = small(tmp_path)
    with (
        RunFolder.open(tmp_path / "run", made(content)),
        pytest.raises(InputError, match="in use by process"),
    ):
        quietly(content)


def test_another_recipe_is_refused_at_resume_and_the_difference_shown(tmp_path: Path) -> None:
    quietly(small(tmp_path, train={"steps": 12}))
    with pytest.raises(
        InputError, match=r"train\.steps: 12 -> 13; model\.num_layers: 2 -> 3|model\.num_layers: 2 -> 3"
    ):
        quietly(small(tmp_path, train={"steps": 13}, model={"num_layers": 3}))
    assert quietly(small(tmp_path, train={"steps": 12, "keep": 1, "evaluate_every": 3})).steps == 12
