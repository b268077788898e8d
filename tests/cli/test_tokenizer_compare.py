"""`pellucid tokenizer compare`: numbers that can be counted by hand, and every way to ask wrongly."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from pellucid.cli import app as frame
from pellucid.cli import tokenizer as command
from pellucid.tokenizer.compare import SAMPLES, count, words_in
from pellucid.tokenizer.formats.tiktoken import from_ranks

BYTES = {bytes([byte]): byte for byte in range(256)}


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    """Two vocabularies: one of single bytes, and one that knows two words too."""
    from_ranks(BYTES, "gpt2", {}).save(tmp_path / "bytes")
    from_ranks(BYTES | {b"Hello": 256, b" world": 257}, "gpt2", {"<end>": 258}).save(tmp_path / "words")
    return [str(tmp_path / "bytes"), str(tmp_path / "words")]


def test_json_counts_tokens_bytes_and_words(folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert frame.run(["tokenizer", "compare", *folders, "--text", "Hello world", "--width", "10", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["tokenizers"] == {
        "bytes": {"vocabulary": 256, "table_parameters": 2560, "tokens": 11},
        "words": {"vocabulary": 259, "table_parameters": 2590, "tokens": 2},
    }
    words = told["texts"]["text"]["words"]
    assert words["pieces"] == ["Hello", " world"]
    assert (words["tokens"], words["bytes"], words["words"]) == (2, 11, 2)
    assert (words["tokens_per_byte"], words["tokens_per_word"]) == (round(2 / 11, 4), 1.0)


def test_printed_side_by_side(folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert frame.run(["tokenizer", "compare", *folders, "-t", "Hello world\n"]) == 0
    printed = capsys.readouterr().out
    assert "Hello| world|⏎" in printed and "H|e|l|l|o| |w|o|r|l|d|⏎" in printed
    assert "3 tokens  0.250 per byte   1.50 per word" in printed
    assert "259 x 1,024 = 0.3 M parameters" in printed


def test_colours_alternate_on_a_terminal(folders: list[str]) -> None:
    text = command.in_colour(("Hello", " world", "!"), terminal=True)
    assert text.plain == "Hello world!"
    assert [span.style for span in text.spans] == [*command.SHADES, command.SHADES[0]]
    screen = io.StringIO()
    loaded = {"words": command.open_tokenizer(folders[1])}
    counts = {"text": {"words": count(loaded["words"], "[bold]Hello")}}
    command.print_counts(loaded, counts, 8, Console(file=screen, force_terminal=True, color_system="standard"))
    assert "\x1b[30;10" in screen.getvalue() and "[bold]" not in screen.getvalue().replace("\x1b", "")


def test_without_text_every_sample_is_cut(folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert frame.run(["tokenizer", "compare", folders[0], "--json"]) == 0
    texts = json.loads(capsys.readouterr().out)["texts"]
    assert list(texts) == list(SAMPLES)
    for title, sample in SAMPLES.items():
        cut = texts[title]["bytes"]
        assert cut["tokens"] == cut["bytes"] == len(sample.encode())


def test_parts_of_a_character_are_shown_as_bytes(folders: list[str]) -> None:
    assert count(command.open_tokenizer(folders[0]), "ä").pieces == ("\\xc3", "\\xa4")


def test_words_of_scripts_with_and_without_spaces() -> None:
    assert words_in("Don't panic, it's 3.14!") == 4
    assert words_in("老灯塔") == 3
    assert words_in(" \n") == 0


def test_same_last_name_is_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place in ("a", "b"):
        from_ranks(BYTES, "gpt2", {}).save(tmp_path / place / "tok")
    names = [str(tmp_path / place / "tok") for place in ("a", "b")]
    assert frame.run(["tokenizer", "compare", *names, "-t", "x", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)["tokenizers"]) == names


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "no model 'nowhere'"),
        (["smolm2"], "did you mean 'smollm2'"),
        (["{tmp}/empty"], "no tokenizer here"),
        (["{tmp}/notes.txt"], "no tokenizer format"),
        ([], "Missing argument"),
        (["{tmp}/empty", "--txt", "x"], "--text"),
    ],
)
def test_asked_wrongly(arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("nothing")
    assert frame.run(["tokenizer", "compare", *(word.format(tmp=tmp_path) for word in arguments)]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
