"""`pellucid quantize` from the command line: what is written, what is said, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import pellucid
from pellucid.checkpoints.save import save
from pellucid.cli.app import run
from tests.checkpoints.tiny import CONFIGS, logits, random_model, tiny_tokenizer
from tests.models.few_bits import formats_of

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "plain"
    save(random_model(CONFIGS["llama-tied-wide-heads"]), tiny_tokenizer(), path)
    return path


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("The thin thing in the tin is on the thatch. " * 40)
    return path


def answer(path: Path) -> torch.Tensor:
    return logits(pellucid.load(path, dtype="float32")[0])


@pytest.mark.parametrize("scheme", ["int8", "int4", "q4_0"])
@pytest.mark.parametrize("target", ["few", "few.gguf"])
def test_both_containers_hold_what_runs(
    scheme: str, target: str, folder: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / target
    asked = ["quantize", str(folder), str(path), "--scheme", scheme, "--method", "gptq", "--calibrate", str(text)]
    assert run(asked) == 0
    told = capsys.readouterr()
    assert "by gptq" in told.out and ("stays in 16 bits" in told.err) == (target == "few")
    stored, _ = pellucid.load(path, dtype="float32", quantize="stored")
    assert formats_of(stored) == {{"int8": "Q8_0", "int4": "Q4_1", "q4_0": "Q4_0"}[scheme]}
    torch.testing.assert_close(logits(stored), answer(path))
    bound = {"int8": 0.1, "int4": 1.5, "q4_0": 2.0}[scheme]
    assert float((logits(stored) - answer(folder)).abs().mean()) < bound


def test_the_text_that_it_writes_itself_is_the_default(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (1, 2):
        assert run(["quantize", str(folder), str(tmp_path / f"few{number}.gguf")]) == 0
    one, two = (tmp_path / f"few{number}.gguf" for number in (1, 2))
    assert torch.equal(answer(one), answer(two))
    assert run(["quantize", str(folder), str(tmp_path / "rounded.gguf"), "--method", "rtn"]) == 0
    assert not torch.equal(answer(one), answer(tmp_path / "rounded.gguf"))


def test_the_report_as_json_and_as_a_table(
    folder: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "few"
    asked = ["quantize", str(folder), str(path), "--method", "rtn", "--text", str(text)]
    assert run([*asked, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["scheme"] == "Q4_1" and told["text"] == str(text) and told["precision"] == "float32"
    assert 0 < told["difference"]["kl_mean"] <= told["difference"]["kl_99"]
    assert 0 < told["difference"]["agreement"] <= 1
    assert told["after"]["disk"] < told["before"]["disk"]
    assert set(told["after"]["memory"]) > {"Q4_1"}
    assert min(told[side]["tokens_per_second"] for side in ("before", "after")) > 0
    assert run([*asked, "--report"]) == 0
    table = capsys.readouterr().out
    assert all(word in table for word in ("perplexity", "KL a token, mean", "99th percentile", "tokens/s", "Q4_1"))


def test_a_source_in_few_bits_is_widened_and_that_is_said(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = tmp_path / "few.gguf"
    assert run(["quantize", str(folder), str(few), "--scheme", "q4_1", "--method", "rtn"]) == 0
    assert run(["quantize", str(few), str(tmp_path / "again"), "--scheme", "int8", "--method", "rtn"]) == 0
    assert "Q4_1 already: it is widened first" in capsys.readouterr().err
    assert run(["quantize", str(few), str(tmp_path / "same.gguf"), "--scheme", "int4"]) == 2
    assert "is in Q4_1 already: copy it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{folder}", "{tmp}/few", "--scheme", "int5"], "did you mean 'int"),
        (["{folder}", "{tmp}/few", "--method", "gpqt"], "did you mean 'gptq'?"),
        (["{folder}", "{folder}"], "is the model itself"),
        (["{folder}", "{tmp}"], "so it is not just a model folder"),
        (["{folder}", "{tmp}/notes.gguf"], "is no GGUF file"),
        (["{tmp}/nothing", "{tmp}/few"], "there is no model"),
        (["{folder}", "{tmp}/few", "--calibrate", "{tmp}/none.txt"], "there is no such file"),
        (["{folder}", "{tmp}/few", "--calibrate", "{tmp}/empty.txt"], "the file is empty"),
        (["{folder}", "{tmp}/few", "--calibrate", "{tmp}/short.txt"], "at least 16 are needed"),
        (["{folder}", "{tmp}/few", "--calibrate", "{tmp}/short.txt", "--method", "rtn"], "learns from no text"),
        (["{folder}", "{tmp}/few", "--text", "{tmp}/short.txt"], "add --report"),
        (["{folder}", "{tmp}/few", "--json", "--text", "{tmp}/short.txt", "--method", "rtn"], "at least 16 are needed"),
    ],
)
def test_what_is_asked_wrongly_writes_nothing(
    arguments: list[str], said: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.gguf").write_text("these are notes and no model at all")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "short.txt").write_text("the")
    before = sorted(tmp_path.rglob("*"))
    assert run(["quantize", *(word.format(folder=folder, tmp=tmp_path) for word in arguments)]) == 2
    assert said in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_rows_that_are_no_whole_blocks_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = CONFIGS["llama"].model_copy(update={"intermediate_size": 80})
    save(random_model(config), tiny_tokenizer(), tmp_path / "plain")
    for name in ("few", "few.gguf"):
        assert run(["quantize", str(tmp_path / "plain"), str(tmp_path / name), "--method", "rtn"]) == 0
        assert "4 matrices stay in 16 bits" in capsys.readouterr().err
        stored, _ = pellucid.load(tmp_path / name, dtype="float32", quantize="stored")
        torch.testing.assert_close(logits(stored), answer(tmp_path / name))


@pytest.mark.parametrize(("one", "other", "status"), [("a", "b.gguf", 0), ("a.gguf", "b", 0), ("a.gguf", "b.gguf", 2)])
def test_the_same_scheme_in_another_container_is_no_copy(
    one: str, other: str, status: int, folder: Path, tmp_path: Path
) -> None:
    assert run(["quantize", str(folder), str(tmp_path / one), "--scheme", "q4_1", "--method", "rtn"]) == 0
    asked = ["quantize", str(tmp_path / one), str(tmp_path / other), "--scheme", "q4_1", "--method", "rtn"]
    assert run(asked) == status
