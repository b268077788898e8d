"""`pellucid bench serve`: a server of its own, the table, JSON and the picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pellucid.checkpoints.save import save
from pellucid.cli import app as frame
from pellucid.cli.bench import guessing, show, values_of, without
from pellucid.serving.bench import Level, Reply
from tests.checkpoints.tiny import CONFIGS, random_model, tiny_tokenizer
from tests.serving.live import serving
from tests.serving.stand_in import tiny_engine

SMALL = ["--concurrency", "1,2", "--requests", "3", "--prompt-tokens", "12", "--answer-tokens", "4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "model"
    save(random_model(CONFIGS["llama"]), tiny_tokenizer(), path)
    return path


def test_a_server_is_started_measured_and_ended(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PELLUCID_NATIVE", "0")  # nothing is compiled
    monkeypatch.setenv("PELLUCID_API_KEY", "one two")  # the server's too
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    picture = tmp_path / "bench.png"
    asked = ["bench", "serve", str(folder), *SMALL, "--json", "--plot", str(picture)]
    assert frame.run([*asked, "--", "--dtype", "float32", "--draft", str(folder)]) == 0
    said = capfd.readouterr()
    found = json.loads(said.out)["levels"]
    assert [one["concurrency"] for one in found] == [1, 2]
    for one in found:
        assert one["errors"] == 0 and one["answer_tokens_per_second"] > 0
        assert 0 <= one["cache_waste"] < one["cache_waste_contiguous"] < 1
        assert one["plain_tokens_per_second"] > 0  # of the server without guesses
    assert found[0]["guesses_taken"] > 0.5  # by the model itself
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "guesses:" in said.err and "cache:" in said.err  # the server's own account, once it has been told to stop
    assert said.err.rindex("serving ") < said.err.index("guesses:")  # and then the other one was up too


def test_the_key_of_the_server_is_its_clients_too(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PELLUCID_NATIVE", "0")
    monkeypatch.delenv("PELLUCID_API_KEY", raising=False)
    asked = ["bench", "serve", str(folder), *SMALL[2:], "--concurrency", "1"]
    assert frame.run([*asked, "--", "--dtype", "float32", "--api-key", "secret"]) == 0
    assert "0 of 3" in capfd.readouterr().out


def test_a_server_with_guesses_is_put_beside_one_without(capsys: pytest.CaptureFixture[str]) -> None:
    level = Level(1, [Reply([0.0, 1.0, 2.0], 8, 30)], 2.0).summary() | {"plain_tokens_per_second": 10.0}
    show([level], 8, 30)
    assert "1 at once: 1.50 times as fast as the 10 tokens/s of a server without guesses" in capsys.readouterr().out


def test_options_of_the_server_are_read_either_way() -> None:
    options = ["--draft", "a", "--dtype", "x", "--guesses=3", "--draft=b", "--api-key", "--draft"]
    assert [value for _, value in values_of(options, "--draft")] == ["a", "b"]
    assert without(options, "--draft", "--guesses") == ["--dtype", "x", "--api-key", "--draft"]
    assert guessing(options) and guessing(["--guesses", "2"]) and not guessing(["--guesses", "2", "--guesses=0"])


def test_a_server_that_runs_is_measured_too(capsys: pytest.CaptureFixture[str], one_thread: None) -> None:
    with serving(tiny_engine()) as live:
        assert frame.run(["bench", "serve", "--url", live.url, *SMALL]) == 0
    table = capsys.readouterr().out
    assert "at once" in table and "of the cache in use held no token" in table


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--concurrency", "1,x"], "--concurrency 1,x: give numbers"),
        (["--concurrency", "0"], "--concurrency 0"),
        (["--plot", "bench.txt"], "--plot bench.txt"),
        (["--url", "nowhere"], "--url nowhere"),
        (["smollm2", "--url", "http://x", "--", "--dtype", "float32"], "takes no options"),
        (["no-such-model"], "no-such-model"),
        (["--", "--draft", "x"], "--draft stands where the model does"),
    ],
)
def test_what_is_asked_wrongly(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert frame.run(["bench", "serve", *arguments]) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
