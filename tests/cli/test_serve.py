"""`pellucid serve`: what its options mean, and what it says before a model is loaded."""

from __future__ import annotations

import socket
from types import SimpleNamespace
from typing import Any

import pytest

from pellucid.cli import app as frame
from pellucid.cli import running, serve
from pellucid.cli.timeline import Timeline
from pellucid.serving import run
from pellucid.serving.service import Settings
from tests.inference.tiny import ByteTokenizer, tiny_model
from tests.serving.stand_in import Scripted


@pytest.fixture
def opened() -> list[dict[str, Any]]:
    """The options of the engines that were opened."""
    return []


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, opened: list[dict[str, Any]]) -> list[tuple[Settings, float, str]]:
    """What would be served: the settings, the seconds to drain, and where."""
    seen: list[tuple[Settings, float, str]] = []

    class Web:
        def __init__(self, app: Any, drain: float, at_end: Any) -> None:
            self.app, self.drain = app, drain

        def run(self, sockets: list[socket.socket]) -> None:
            seen.append((self.app.state.service.settings, self.drain, run.url_of(sockets[0])))

    def open_engine(model: str, dtype: str, timeline: Timeline, **options: Any) -> Any:
        engine: Any = Scripted("x")
        engine.model = SimpleNamespace(generation_config={"temperature": 0.3})
        opened.append(options)
        return engine

    monkeypatch.setattr(serve, "open_engine", open_engine)
    monkeypatch.setattr(run, "server", Web)
    return seen


def test_the_defaults_are_careful(served: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert frame.run(["serve", "smollm2", "--port", "0"]) == 0
    settings, drain, url = served[0]
    assert url.startswith("http://127.0.0.1:") and settings.name == "smollm2" and drain == 30
    assert settings.keys == settings.hosts == settings.origins == ()
    assert settings.max_body == 16 * 2**20 and settings.generation_config == {"temperature": 0.3}
    said = capsys.readouterr().err
    assert f"{url}/v1" in said and "--api-key" not in said and "ready after" in said


def test_every_option_arrives(
    served: list[Any], opened: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    options = """--host 0.0.0.0 --port 0 --name mine --api-key a --api-key b --allow-host h.example
        --allow-origin https://o.example --max-answers 3 --max-body 0.5 --timeout 7 --drain 2
        --temperature 0.1 --top-p 0.9 --preset factual --guesses 4 --deterministic --quantize int8 --draft small
        --int8-cache --adapter poet=runs/poet --adapter clerk=a=b"""
    assert frame.run(["serve", "folder/model", *options.split()]) == 0
    settings, drain, _ = served[0]
    assert settings == Settings(
        name="mine",
        keys=("a", "b"),
        hosts=("h.example",),
        origins=("https://o.example",),
        max_answers=3,
        max_body=2**19,
        timeout=7,
        flags=settings.flags,
        preset="factual",
        generation_config={"temperature": 0.3},
    )
    assert drain == 2 and settings.flags["temperature"] == 0.1 and settings.flags["top_p"] == 0.9
    assert frame.run(["serve", "folder/model", "--host", "0.0.0.0", "--port", "0"]) == 0
    assert served[1][0].name == "model"
    assert opened == [
        {
            "guesses": 4,
            "deterministic": True,
            "quantize": "int8",
            "draft": "small",
            "int8_cache": True,
            "adapters": {"poet": "runs/poet", "clerk": "a=b"},
        },
        {"guesses": 0, "deterministic": False, "quantize": None, "draft": None, "int8_cache": False, "adapters": {}},
    ]
    assert "anyone who reaches this address may ask" in capsys.readouterr().err


def test_keys_from_the_environment(served: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PELLUCID_API_KEY", "one two")
    assert frame.run(["serve", "--port", "0"]) == 0
    assert served[0][0].keys == ("one", "two")


def test_what_is_wrong_is_said_first(served: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for arguments, said in (
            (["--port", port], f"cannot listen on 127.0.0.1 port {port}"),
            (["--port", "70000"], "--port"),
            (["--temperature", "-1"], "temperature = -1"),
            (["--preset", "balancd"], "did you mean 'balanced'?"),
            (["--adapter", "runs/poet"], "--adapter 'runs/poet': give a name and a folder"),
            (["--adapter", "a=b", "--adapter", "a=c"], "there is a 'a' already"),
            (["--adapter", "smollm2=b"], "there is a 'smollm2' already"),
        ):
            assert frame.run(["serve", *arguments]) == 2
            assert said in capsys.readouterr().err
    assert not served


def test_the_extra_is_named_where_it_is_missing(
    served: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serve, "find_spec", lambda name: None)
    assert frame.run(["serve", "--port", "0"]) == 2
    assert "pip install 'pellucid[serve]'" in capsys.readouterr().err


def test_the_cache_and_its_size_are_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(
        running, "open_model", lambda name, dtype, timeline, quantize: (tiny_model("sinusoidal"), ByteTokenizer())
    )
    timeline = Timeline()
    serve.open_engine("tiny", "auto", timeline, num_blocks=16)
    said = capsys.readouterr().err
    assert "no native step, but PyTorch's: its positions are sinusoidal" in said
    assert "cache: 16 blocks of 16 tokens, 0 MiB: asked for" in said
    serve.open_engine("tiny", "auto", timeline, max_sequences=2)
    assert "cache: 12 blocks of 16 tokens, 0 MiB: all that 2 sequences" in capsys.readouterr().err
    assert list(timeline.parts) == ["engine"]


def test_the_cache_of_a_draft_is_counted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(running, "open_model", lambda *_: (tiny_model("sinusoidal"), ByteTokenizer()))
    monkeypatch.setattr("pellucid.inference.engine.check_same_vocabulary", lambda *_: None)
    plain, guessed = (
        serve.open_engine("tiny", "auto", Timeline(), num_blocks=4096, draft=name) for name in (None, "smollm2")
    )
    assert guessed.cache_bytes == 2 * plain.cache_bytes
    assert f"{guessed.cache_bytes / 2**20:.0f} MiB with that of the draft: asked for" in capsys.readouterr().err
