"""How a model is opened, and the line that says how its weights lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from pellucid.checkpoints.adapters import save_adapter
from pellucid.checkpoints.gguf_save import save_gguf
from pellucid.checkpoints.load import load, to_run
from pellucid.cli import app as frame
from pellucid.cli import running
from pellucid.cli.timeline import Timeline
from pellucid.errors import InputError
from pellucid.models.adapters import AdapterConfig, add_adapter
from tests.checkpoints.tiny import CONFIGS, random_model, tiny_tokenizer
from tests.models.few_bits import formats_of


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("models") / "tiny.gguf"
    save_gguf(random_model(CONFIGS["llama"]), tiny_tokenizer(), file, kind="q8_0")
    return str(file)


@pytest.fixture(autouse=True)
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PELLUCID_PRECISION", "float32")  # nothing is measured


@pytest.mark.skipif(to_run(None, "auto") is None, reason="there is no native step here")
def test_weights_stay_as_they_lie_in_the_file(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    model, _ = running.open_model(path, "auto", Timeline())
    assert formats_of(model) == {"Q8_0"}
    assert (
        "weights 163.6 KiB in Q8_0, 2.2 KiB in float32, as they lie in the file; float32, set"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("dtype", "quantize", "line"),
    [
        ("bfloat16", None, "weights 309.1 KiB in bfloat16; bfloat16, asked for"),
        ("auto", "int4", "weights 96.2 KiB in Q4_1, 2.2 KiB in float32; float32, set by"),
    ],
)
def test_weights_are_widened_or_rounded_where_that_is_asked_for(
    dtype: str, quantize: str | None, line: str, path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model, _ = running.open_model(path, dtype, Timeline(), quantize)
    assert model.quantised == (quantize is not None)
    assert line in capsys.readouterr().err


def test_adapters_are_opened_beside_the_model(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = load(path)
    add_adapter(model, AdapterConfig(rank=2), "poet")
    save_adapter(model, tmp_path / "poet", "poet", base=path, tokenizer=tokenizer)
    engine = running.open_engine(path, "auto", Timeline(), adapters={"poet": str(tmp_path / "poet")}, num_blocks=8)
    assert engine.adapters == ("poet",) and engine.adapter(None) is None
    monkeypatch.setattr(running, "open_model", lambda *_: pytest.fail("the model is loaded first"))
    with pytest.raises(InputError, match="is a whole model: give the folder of an adapter"):
        running.open_engine(path, "auto", Timeline(), adapters={"poet": path})


def test_a_scheme_that_does_not_exist_is_said_at_once(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="there is no quantisation 'int5'"):
        running.open_model(path, "auto", Timeline(), "int5")
    for command in ("chat", "generate", "serve"):
        assert (
            frame.run([command, path, *(["-p", "on"] if command != "serve" else ["--port", "0"]), "--quantize", "int5"])
            == 2
        )
        assert "there is no quantisation 'int5': it must be one of int8, int4" in capsys.readouterr().err


def test_a_rounded_model_goes_on_with_a_text(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert frame.run(["generate", path, "-p", "on", "--quantize", "int4", "--max-tokens", "3", "--seed", "1"]) == 0
    assert "KiB in Q4_1" in capsys.readouterr().err
