"""The frame of the command line: every way of ending is a status and at most one line."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from pellucid.cli import app as frame
from pellucid.errors import InputError, PellucidError

ENDINGS: dict[str, BaseException] = {
    "failed": PellucidError("the disk is full; free some space"),
    "asked": InputError("there is no model 'x'"),
    "bug": KeyError("blocks.0"),
    "os": FileNotFoundError(2, "No such file or directory", "book.txt"),
    "interrupt": KeyboardInterrupt(),
    "pipe": BrokenPipeError(32, "Broken pipe"),
    "exit": typer.Exit(3),
    "bad": typer.BadParameter("must be positive"),
}


@pytest.fixture(autouse=True)
def ends() -> Iterator[None]:
    """A hidden command `ends HOW` that ends in the given way."""

    def ends(how: str, size: int = 0) -> None:
        print(f"size {size}")
        if how in ENDINGS:
            raise ENDINGS[how]

    frame.app.command("ends", hidden=True)(ends)
    yield
    frame.app.registered_commands.pop()


@pytest.mark.parametrize(
    ("how", "status", "line"),
    [
        ("well", 0, ""),
        ("failed", 1, "error: the disk is full; free some space\n"),
        ("asked", 2, "error: there is no model 'x'\n"),
        ("os", 1, "error: [Errno 2] No such file or directory: 'book.txt'\n"),
        ("interrupt", 130, ""),
        ("exit", 3, ""),
        ("bad", 2, "error: Invalid value: must be positive (see pellucid ends --help)\n"),
    ],
)
def test_ending(how: str, status: int, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert frame.run(["ends", how]) == status
    assert capsys.readouterr().err.lstrip() == line


def test_what_nobody_foresaw_is_called_a_bug(capsys: pytest.CaptureFixture[str]) -> None:
    assert frame.run(["ends", "bug"]) == 1
    said = capsys.readouterr().err
    assert said == "error: this is a bug in pellucid (KeyError: 'blocks.0'); add --debug to see the traceback\n"


@pytest.mark.parametrize("arguments", [["--debug", "ends", "asked"], ["ends", "asked", "--debug"]])
def test_debug_shows_the_traceback(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert frame.run(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("Traceback") and said.endswith("error: there is no model 'x'\n")


def test_debug_after_two_dashes_is_an_argument(capsys: pytest.CaptureFixture[str]) -> None:
    assert frame.run(["ends", "--", "--debug"]) == 0
    assert capsys.readouterr().out == "size 0\n"


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [
        (["doctr"], "'doctor'"),
        (["--verson"], "'--version'"),
        (["ends", "well", "--sise", "3"], "'--size'"),
        (["doctor", "--jsno"], "'--json'"),
    ],
)
def test_misspelt(arguments: list[str], suggestion: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert frame.run(arguments) == 2
    said = capsys.readouterr().err
    assert f"did you mean {suggestion}" in said.lower() and said.count("\n") == 1


@pytest.mark.parametrize("arguments", [["ends"], ["ends", "well", "--size", "big"], ["ends", "well", "spare"]])
def test_asked_wrongly_names_the_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert frame.run(arguments) == 2
    said = capsys.readouterr().err
    assert said.endswith("(see pellucid ends --help)\n") and said.count("\n") == 1


@pytest.mark.parametrize(("arguments", "shown"), [([], "doctor"), (["tokenizer"], "compare")])
def test_without_a_command_the_help_is_shown(
    arguments: list[str], shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert frame.run(arguments) == 0
    said = capsys.readouterr()
    assert shown in said.out and said.err == ""


def test_every_command_says_what_it_does_and_gives_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    """The help of each command and sub-command: a sentence, then a line that can be typed."""
    silent = [" ".join(path) for path in command_paths() if not help_teaches(path, capsys)]
    assert not silent


def command_paths() -> list[list[str]]:
    """The words that call each command, those of groups too."""

    def within(group: Any, prefix: list[str]) -> Iterator[list[str]]:
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                yield from within(command, [*prefix, name])
            elif not command.hidden:
                yield [*prefix, name]

    return list(within(typer.main.get_command(frame.app), []))


def help_teaches(path: list[str], capsys: pytest.CaptureFixture[str]) -> bool:
    assert frame.run([*path, "--help"]) == 0
    return f"pellucid {' '.join(path)} " in capsys.readouterr().out.partition("Usage:")[2].partition("\n")[2]


def run_python(program: str, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def test_control_c_ends_without_a_traceback() -> None:
    program = """
import signal, sys, time
from pellucid.cli import app as frame
signal.signal(signal.SIGINT, signal.default_int_handler)  # which is ignored where the tests run in the background
def wait() -> None:
    print("ready", flush=True)
    time.sleep(60)
frame.app.command("wait")(wait)
sys.exit(frame.run(["wait"]))
"""
    with run_python(program) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.strip() == ""


@pytest.mark.parametrize("writes", ["print('x' * 100)", "print('x' * 10_000_000)", "Console().print('x\\n' * 100_000)"])
def test_a_broken_pipe_is_silent(writes: str) -> None:
    program = f"""
import sys
from rich.console import Console
from pellucid.cli import app as frame
def write() -> None:
    sys.stdin.read()
    {writes}
frame.app.command("write")(write)
sys.argv = ["pellucid", "write"]
frame.main()
"""
    with run_python(program, stdin=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdin is not None and process.stderr is not None
        process.stdout.close()  # whoever read us has gone; now we may write
        process.stdin.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_python_dash_m() -> None:
    done = subprocess.run([sys.executable, "-m", "pellucid", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("pellucid ")


def test_a_warning_is_one_line() -> None:
    """SmolLM2's vocabulary lacks the byte 4: that is said, without a line of our source."""
    command = [sys.executable, "-m", "pellucid", "tokenizer", "encode", "smollm2", "--text", "a\x04b"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ended.stderr == "warning: the vocabulary has no token for the byte 0x04, which is left out\n"
