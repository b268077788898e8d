"""Native code is compiled once, kept safely, and never needed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pellucid import native

COMPILER = next(filter(None, map(shutil.which, native.COMPILERS)), None)
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="there is no compiler")


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A function that gives 42, from a header; nothing is compiled yet."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code/answer.h").write_text("#define ANSWER 42\n")
    source = tmp_path / "code/answer.cpp"
    source.write_text('#include "answer.h"\nextern "C" int answer() { return ANSWER; }\n')
    monkeypatch.setenv("PELLUCID_CACHE", str(tmp_path / "cache"))
    return source


def answer(source: Path) -> int:
    """As a new process would find it."""
    native._built.cache_clear()
    library = native.load(source)
    assert library is not None, native.why_not(source)
    return int(library.answer())


def in_a_process(source: Path) -> list[str]:
    """The command of a process that prints the answer."""
    program = "import pathlib, sys, pellucid.native as n; print(n.load(pathlib.Path(sys.argv[1])).answer())"
    return [sys.executable, "-c", program, str(source)]


def kept(source: Path) -> list[Path]:
    return sorted((source.parents[1] / "cache").glob("*.so"))


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@needs_compiler
def test_compiled_once(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", str(script(tmp_path / "cxx", f'echo "$*" >> {tmp_path}/calls; exec {COMPILER} "$@"')))
    assert answer(source) == answer(source) == 42 and native.why_not(source) is None
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [call == "--version" for call in calls] == [True, False, True]
    assert len(list((tmp_path / "cache").iterdir())) == 2  # the library and its digest: nothing is left over


@needs_compiler
@pytest.mark.parametrize("file", ["answer.cpp", "answer.h"])
def test_compiled_again_when_the_source_changes(source: Path, file: str) -> None:
    assert answer(source) == 42
    changed = source.with_name(file)
    changed.write_text(changed.read_text().replace("return ANSWER", "return 43").replace("ANSWER 42", "ANSWER 43"))
    assert answer(source) == 43 and len(kept(source)) == 2


@needs_compiler
@pytest.mark.parametrize("damage", ["cut", "empty", "text", "no digest", "other digest"])
def test_a_damaged_library_is_compiled_again(source: Path, damage: str) -> None:
    assert answer(source) == 42
    (library,) = kept(source)
    whole, digest = library.read_bytes(), library.with_suffix(".sha256")
    content = {"cut": whole[: len(whole) // 2], "empty": b"", "text": b"not a library"}.get(damage, whole)
    library.unlink()  # the old one is in use: a damaged file is another file
    library.write_bytes(content)
    if damage == "no digest":
        digest.unlink()
    if damage == "other digest":
        digest.write_bytes(b"\xff")
    # In a process of its own, which a bad library would end.
    done = subprocess.run(in_a_process(source), capture_output=True, text=True, check=True)
    assert done.stdout == "42\n" and kept(source) == [library]
    assert digest.read_bytes() == native._digest(library)


@needs_compiler
def test_many_processes_at_once(source: Path) -> None:
    running = [subprocess.Popen(in_a_process(source), stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert [process.communicate(timeout=120)[0] for process in running] == ["42\n"] * 4
    assert len(kept(source)) == 1


def test_switched_off(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PELLUCID_NATIVE", "0")
    assert native.load(source) is None and native.why_not(source) == "PELLUCID_NATIVE=0 switches it off"


def test_without_a_compiler(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert native.load(source) is None and native.why_not(source) == "there is no compiler (c++, g++, clang++)"
    monkeypatch.setenv("CXX", "not-there")
    assert native.load(source) is None and native.why_not(source) == "CXX=not-there is not on the PATH"


@pytest.mark.parametrize(
    ("does", "reason"),
    [
        (
            '[ "$1" = --version ] && exit; echo "x.cpp:1: error: no room" >&2; exit 4',
            "failed with status 4: x.cpp:1: err",
        ),
        ("exit 7", "failed with status 7: nothing said"),
        ('[ "$1" = --version ] && exit; exit 0', "No such file"),  # it says that it has worked
        ('[ "$1" = --version ] && exit; while [ "$1" != -o ]; do shift; done; echo text > "$2"', "file too short"),
    ],
)
def test_a_compiler_that_fails(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, does: str, reason: str
) -> None:
    (tmp_path / "bin").mkdir()
    script(tmp_path / "bin/c++", does)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    assert native.load(source) is None
    assert reason in (native.why_not(source) or "")


def test_a_source_that_does_not_compile(source: Path) -> None:
    source.write_text("this is no C++\n")
    assert native.load(source) is None and native.why_not(source)
    assert kept(source) == []


def test_a_cache_that_cannot_be_written(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PELLUCID_CACHE", str(tmp_path / "file/cache"))
    assert native.load(source) is None and native.why_not(source)
