"""`pellucid tokenizer train` and `encode`, as a user meets them."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from pellucid.cli import app as frame
from pellucid.cli import tokenizer_train
from pellucid.tokenizer.tokenizer import Tokenizer


@pytest.fixture
def book(tmp_path: Path) -> Path:
    words = ["the", "old", "keeper", "of", "the", "lighthouse", "wrote", "down", "every", "ship", "in", "the", "night,"]
    words += ["harbour", "fisherman", "astronomer", "lantern", "weather", "and", "slept"]
    lines = (" ".join(words[place % 7 :: 1 + place % 3]) + ".\n" for place in range(200))
    path = tmp_path / "book.txt"
    path.write_text("".join(lines), "utf-8")
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = frame.run(["tokenizer", *map(str, arguments)])
    out, err = capsys.readouterr()
    return status, out, err


def test_train_then_encode(book: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "train", book, "--vocab-size", 300, "-o", tmp_path / "tok")
    assert status == 0 and "300 tokens (43 merges)" in out and "longest tokens: ' fisherman'" in out
    tokenizer = Tokenizer.load(tmp_path / "tok")
    assert tokenizer.vocab_size == 300 and tokenizer.eos_id == 0 == tokenizer.special_tokens["<|endoftext|>"]
    status, out, _ = run(capsys, "encode", tmp_path / "tok", "-p", "the ship é")
    lines = out.splitlines()
    assert status == 0 and lines[0].replace("|", "").startswith("the ship ") and lines[0].endswith(r"|\xc3|\xa9")
    assert list(map(int, lines[1].split())) == tokenizer.encode("the ship é")
    assert lines[2].startswith(f"{len(tokenizer.encode('the ship é'))} tokens")


def test_json(book: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "tok"
    arguments = [
        "--vocab-size",
        290,
        "--special",
        "<s>",
        "--special",
        "<x>",
        "--pattern",
        "cl100k",
        "--json",
        "-o",
        target,
    ]
    status, out, err = run(capsys, "train", book, *arguments)
    report = json.loads(out)
    assert status == 0 and not err
    assert report["vocab_size"] == 290 and report["merges"] == 290 - 256 - 2 and report["pattern"] == "cl100k"
    assert report["special_tokens"] == {"<s>": 0, "<x>": 1} and report["llama_cpp"] == "can express it"
    assert report["characters"] == len(book.read_text()) and report["dropped_pretokens"] == 0
    status, out, _ = run(capsys, "encode", target, "-p", "<s>the", "--allow-special", "--json")
    assert status == 0 and json.loads(out)["ids"][0] == 0 and json.loads(out)["pieces"][0] == "<s>"
    status, out, _ = run(capsys, "encode", target, "-p", "<s>the", "--json")
    assert 0 not in json.loads(out)["ids"]


def test_what_llama_cpp_cannot_express_is_said(book: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Promise M3."""
    arguments = ["--vocab-size", 280, "-o", tmp_path / "tok", "--pattern"]
    status, _, err = run(capsys, "train", book, *arguments, r"\w+|\W")
    assert status == 0 and "cannot be written to GGUF" in err and "llama.cpp does not know" in err
    status, _, err = run(capsys, "train", book, *arguments, "qwen2")
    assert status == 0 and "GGUF" not in err


def test_dropped_words_are_said(
    book: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pellucid.tokenizer.counting._ENTRY", 1 << 20)
    monkeypatch.setattr("pellucid.tokenizer.counting._CHECKED_EVERY", 1)
    status, out, _ = run(capsys, "train", book, "--vocab-size", 260, "-o", tmp_path / "tok", "--memory", 8)
    assert status == 0 and "rare pre-tokens were dropped" in out and "--memory" in out


def test_standard_input(
    book: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(capsys, "train", book, "--vocab-size", 270, "-o", tmp_path / "tok")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("ship é\n".encode())))
    status, out, _ = run(capsys, "encode", tmp_path / "tok", "--json")
    assert status == 0 and json.loads(out)["text"] == "ship é\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"ship \xe9")))
    status, _, err = run(capsys, "encode", tmp_path / "tok")
    assert status == 2 and "not UTF-8: see the byte at 5" in err


def test_empty_text(book: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "train", book, "--vocab-size", 270, "-o", tmp_path / "tok")
    status, out, _ = run(capsys, "encode", tmp_path / "tok", "-p", "")
    assert status == 0 and out.splitlines()[-1] == "0 tokens"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vocab-size", "200"], "must be at least 257"),
        (["--vocab-size", "100000"], r"gives only"),
        (["--pattern", "cl10k"], "did you mean 'cl100k'?"),
        (["--pattern", "("], "not a regular expression"),
        (["--vocabsize", "300"], "did you mean '--vocab-size'?"),
        (["--special", "a", "--vocab-size", "300"], "'a' is an ordinary token too"),
    ],
)
def test_bad_requests(
    arguments: list[str], message: str, book: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run(capsys, "train", book, "-o", tmp_path / "tok", *arguments)
    assert status == 2 and message in err and err.count("\n") == 1 and not out
    assert not (tmp_path / "tok").exists()


def test_bad_corpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "binary").write_bytes(b"text\0text")
    (tmp_path / "empty").touch()
    for name, message in (
        ("binary", "byte at 4 is 0"),
        ("empty", "no text in it"),
        ("absent", "no such file or folder"),
    ):
        status, _, err = run(capsys, "train", tmp_path / name, "-o", tmp_path / "tok")
        assert status == 2 and f"{tmp_path / name}: " in err and message in err
    assert not (tmp_path / "tok").exists()


def test_only_a_tokenizer_is_replaced(book: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    status, _, err = run(capsys, "train", book, "--vocab-size", 270, "-o", tmp_path / "mine")
    assert status == 2 and "thesis.txt" in err and (tmp_path / "mine/thesis.txt").exists()
    for size in (270, 280):
        assert run(capsys, "train", book, "--vocab-size", size, "-o", tmp_path / "tok")[0] == 0
        assert Tokenizer.load(tmp_path / "tok").vocab_size == size


def test_a_failing_save_leaves_nothing(
    book: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Tokenizer, folder: Path) -> None:
        (folder / "tokenizer.json").write_text("{")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Tokenizer, "save", full)
    status, _, err = run(capsys, "train", book, "--vocab-size", 270, "-o", tmp_path / "tok")
    assert status == 1 and "the disk is full" in err and [path.name for path in tmp_path.iterdir()] == ["book.txt"]


def test_a_sign_of_life_without_a_terminal(
    book: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promise E6."""
    monkeypatch.setattr(tokenizer_train, "HEARTBEAT", 0)
    status, _, err = run(capsys, "train", book, "--vocab-size", 322, "-o", tmp_path / "tok")
    assert status == 0 and f"{len(book.read_text()):,} characters read" in err and "320 of 321 tokens found" in err
