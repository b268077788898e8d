"""`pellucid generate`: one prompt, many prompts, and files of prompts with their errors."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from pellucid.cli import app as frame
from pellucid.cli import running
from tests.inference.tiny import ByteTokenizer, tiny_model

GREEDY = ["--temperature", "0", "--max-tokens", "5", "--ignore-eos"]


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small random model stands for every name."""
    monkeypatch.setattr(running, "open_model", lambda name, dtype, timeline, quantize: (tiny_model(), ByteTokenizer()))


def objects(capsys: pytest.CaptureFixture[str]) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_json_with_log_probabilities(capsys: pytest.CaptureFixture[str]) -> None:
    assert frame.run(["generate", "tiny", "-p", "Once", *GREEDY, "--logprobs", "--json"]) == 0
    (answer,) = objects(capsys)
    assert answer["prompt"] == "Once" and answer["prompt_tokens"] == 5 and answer["completion_tokens"] == 5
    assert len(answer["logprobs"]) == len(answer["token_ids"]) == 5
    for token in answer["logprobs"]:
        assert len(token["top"]) == 5
        assert token["top"][0] == {name: token[name] for name in ("id", "token", "logprob")}  # greedy: the most likely
    assert answer["params"]["temperature"] == {"value": 0.0, "source": "flag"}
    assert answer["params"]["top_p"]["source"] == "built-in"


def test_plain_text_is_the_same_answer(capsys: pytest.CaptureFixture[str]) -> None:
    frame.run(["generate", "tiny", "-p", "Once", *GREEDY, "--json"])
    (answer,) = objects(capsys)
    assert answer["logprobs"] is None
    assert frame.run(["generate", "tiny", "-p", "Once", *GREEDY]) == 0
    captured = capsys.readouterr()
    assert captured.out == answer["text"] + "\n"
    assert "ended by max_tokens" in captured.err
    assert frame.run(["generate", "tiny", "-p", "Once", *GREEDY, "--top-logprobs", "0"]) == 0
    assert capsys.readouterr().out.startswith(answer["text"] + "\n")


def test_a_file_of_prompts_is_a_batch_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('"one"\n\n{"prompt": "two", "max_tokens": 2}\n"three"\n')
    arguments = ["generate", "tiny", "-p", "zero", "--prompts-file", str(file), *GREEDY, "--json"]
    assert frame.run(arguments) == 0
    answers = objects(capsys)
    assert [answer["prompt"] for answer in answers] == ["zero", "one", "two", "three"]
    assert [answer["completion_tokens"] for answer in answers] == [5, 5, 2, 5]
    assert answers[2]["params"]["max_tokens"] == {"value": 2, "source": "request"}
    for answer in answers:
        alone = ["generate", "tiny", "-p", answer["prompt"], *GREEDY, "--json"]
        assert frame.run([*alone, "--max-tokens", str(answer["completion_tokens"])]) == 0
        assert objects(capsys)[0]["token_ids"] == answer["token_ids"]


def test_a_prompt_may_ask_for_several_answers_and_for_its_own_scores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "one", "n": 2, "temperature": 1, "seed": 3, "prompt_logprobs": 1}\n')
    arguments = ["generate", "tiny", "--prompts-file", str(file), *GREEDY]
    assert frame.run([*arguments, "--json"]) == 0
    first, second = objects(capsys)
    assert (first["seed"], second["seed"]) == (3, 4) and first["token_ids"] != second["token_ids"]
    assert [len(answer["prompt_logprobs"]) for answer in (first, second)] == [3, 3]  # of BOS and three letters
    assert [token["token"] for token in first["prompt_logprobs"]] == ["o", "n", "e"]
    assert len(first["prompt_logprobs"][0]["top"]) == 1
    assert frame.run(arguments) == 0
    out = capsys.readouterr().out
    for answer in (first, second):  # a terminal is spared what would move its cursor
        assert answer["text"].translate(dict.fromkeys((7, 8, 11, 12, 13))) in out
    file.write_text('{"prompt": "one", "beam_width": 3, "max_tokens": 4}\n')
    assert frame.run([*arguments, "--json"]) == 0
    assert objects(capsys)[0]["completion_tokens"] == 4
    file.write_text('{"prompt": "one", "max_tokens": 0, "prompt_logprobs": 0}\n')
    assert frame.run(["generate", "tiny", "--prompts-file", str(file), "--json"]) == 0
    [scored] = objects(capsys)
    assert (scored["text"], scored["token_ids"]) == ("", []) and len(scored["prompt_logprobs"]) == 3


def test_lines_and_stdin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("one\n\ntwo \r\n")
    assert frame.run(["generate", "tiny", "--prompts-file", str(file), *GREEDY, "--json"]) == 0
    assert [answer["prompt"] for answer in objects(capsys)] == ["one", "two "]
    monkeypatch.setattr("sys.stdin", io.StringIO("three\nfour\n"))
    assert frame.run(["generate", "tiny", "--prompts-file", "-", *GREEDY]) == 0
    out = capsys.readouterr().out
    assert "[1] three" in out and "[2] four" in out


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'"one"\n{"prompt": "two",}\n', "a.jsonl, line 2: this is not JSON"),
        ("a.jsonl", b"[1]\n", "a.jsonl, line 1: '[1]' is no prompt; expected a string"),
        ("a.jsonl", b'{"prompt": "x", "temperature": -1}\n', "a.jsonl, line 1: request: sampling: temperature = -1"),
        ("a.jsonl", b'{"prompt": "x", "top_q": 1}\n', "there is no field 'top_q' (did you mean 'top_p'?)"),
        ("a.txt", b"one\n\xff\xfe\n", "a.txt: byte 4 is not UTF-8"),
        ("a.txt", b"ok\n" + b"x" * 200 + b"\n", "a.txt, line 2: the prompt has 201 tokens and the context holds 96"),
        ("a.txt", b"\n\n", "nothing to go on with"),
    ],
)
def test_bad_files_name_file_and_line(
    name: str, content: bytes, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    assert frame.run(["generate", "tiny", "--prompts-file", str(tmp_path / name)]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give -p TEXT or --prompts-file FILE"),
        (["--prompts-file", "nowhere.txt"], "nowhere.txt: cannot be read (No such file or directory)"),
        (["-p", "x", "--temperature", "-1"], "flag: sampling: temperature = -1"),
        (["-p", "x", "--top-logprobs", "100000"], "logprobs = 100000: the vocabulary has"),
        (["-p", "x", "--temprature", "1"], "--temperature"),
    ],
)
def test_what_is_asked_wrongly(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert frame.run(["generate", "tiny", *arguments]) == 2
    assert said in capsys.readouterr().err
