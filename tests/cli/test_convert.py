"""`pellucid convert`: folder to file and back, and what is asked wrongly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import pellucid
from pellucid.checkpoints.save import About, save
from pellucid.cli.app import run
from tests.checkpoints.tiny import CONFIGS, random_model, same_weights, tiny_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(random_model(CONFIGS["qwen2"]), tiny_tokenizer(), tmp_path / "model", about=About(base="the first"))
    return tmp_path / "model"


def test_a_folder_becomes_a_file_and_a_folder_again(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, back = tmp_path / "model.gguf", tmp_path / "back"
    assert run(["convert", str(folder), str(file), "--type", "f32"]) == 0
    assert run(["convert", str(file), str(back), "--dtype", "bfloat16"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"{folder}: ") and f"-> {file}: " in said[0] and "KiB" in said[0]
    model = random_model(CONFIGS["qwen2"])
    assert same_weights(pellucid.load(file)[0], model)
    assert same_weights(pellucid.load(back)[0], model.bfloat16())
    assert json.loads((back / "config.json").read_text())["pellucid"]["base"] == "the first"


def test_f16_is_the_default_of_files_and_notes_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(random_model(CONFIGS["llama"]), tiny_tokenizer(normalizer={"type": "NFC"}), tmp_path / "model")
    assert run(["convert", str(tmp_path / "model"), str(tmp_path / "m.gguf")]) == 0
    assert pellucid.load(tmp_path / "m.gguf")[0].embedding.weight.dtype == torch.float16
    assert "note: llama.cpp does not apply the tokenizer's normalizer (NFC)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{folder}", "{tmp}/m.gguf", "--dtype", "float16"], "--dtype is of folders"),
        (["{folder}", "{tmp}/other", "--type", "q8_0"], "--type is of GGUF files"),
        (
            ["{folder}", "{tmp}/m.gguf", "--type", "q4_k"],
            "type = 'q4_k': it must be one of f32, f16, bf16, q8_0, q4_0, q4_1",
        ),
        (["{folder}", "{tmp}/other", "--dtype", "float8"], "dtype = 'float8': it must be one of auto"),
        (["{tmp}/nothing", "{tmp}/m.gguf"], "there is no model"),
        (["{folder}", "{tmp}"], "so it is not just a model folder"),
    ],
)
def test_what_is_asked_wrongly_changes_nothing(
    arguments: list[str], message: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert run(["convert", *(word.format(folder=folder, tmp=tmp_path) for word in arguments)]) == 2
    assert message in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
