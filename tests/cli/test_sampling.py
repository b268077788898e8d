"""The sampling flags are written once, and every command that has them shows and hears them."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from pellucid.cli import app as frame
from pellucid.cli import chat, generate, serve
from pellucid.cli.sampling import FLAGS, NOTHING, Sampling, sampling_flags


@pytest.mark.parametrize(
    ("command", "without"),
    [(chat.chat, {"ignore_eos"}), (generate.generate, set()), (serve.serve, {"stop", "ignore_eos", "seed"})],
)
def test_a_command_has_the_flags_in_the_place_of_one_parameter(command: Any, without: set[str]) -> None:
    names = list(inspect.signature(command).parameters)
    flags = [name for name in FLAGS if name not in without]
    start = names.index("preset")
    assert names[start : start + len(flags)] == flags
    assert "sampling" not in names and not without & set(names)


def test_help_shows_them_in_a_panel_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert frame.run(["generate", "--help"]) == 0
    panel = capsys.readouterr().out.split("Sampling")[-1]
    assert all(f"--{name.replace('_', '-')}" in panel for name in FLAGS)


@pytest.fixture
def heard() -> Any:
    """What the command `hears` heard."""
    found: list[Sampling] = []

    @sampling_flags("seed")
    def hears(sampling: Sampling = NOTHING) -> None:
        """Listens."""
        found.append(sampling)

    frame.app.command("hears", hidden=True)(hears)
    yield found
    frame.app.registered_commands.pop()


def test_what_is_given_arrives_and_nothing_else(heard: list[Sampling]) -> None:
    assert frame.run(["hears"]) == 0
    assert frame.run(["hears", "--temperature", "0", "--top-k", "0", "--stop", "a", "--stop", "b"]) == 0
    assert frame.run(["hears", "--preset", "factual", "--ignore-eos", "--presence-penalty", "-1"]) == 0
    assert heard == [
        Sampling({}, None),
        Sampling({"temperature": 0.0, "top_k": 0, "stop": ["a", "b"]}, None),
        Sampling({"presence_penalty": -1.0, "ignore_eos": True}, "factual"),
    ]


def test_a_flag_that_was_left_out_is_unknown(heard: list[Sampling], capsys: pytest.CaptureFixture[str]) -> None:
    assert frame.run(["hears", "--seed", "1"]) == 2
    assert "No such option: --seed" in capsys.readouterr().err and not heard
