"""Notes: our own warnings are shown, whether a command ends well or not; those of libraries go their way."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from pellucid.cli import phases
from pellucid.cli.phases import noting


def ours(message: str) -> None:
    warnings.warn_explicit(message, UserWarning, str(phases.PACKAGE / "checkpoints/save.py"), 1)


def test_our_own_warnings_are_notes_each_once(capsys: pytest.CaptureFixture[str]) -> None:
    with noting():
        ours("one thing")
        ours("another")
        ours("one thing")
        assert capsys.readouterr().err == ""
    assert capsys.readouterr().err == "note: one thing\nnote: another\n"


def test_they_are_shown_where_the_block_fails(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="full"), noting():
        ours("one thing")
        raise ValueError("the disk is full")
    assert capsys.readouterr().err == "note: one thing\n"


def test_those_of_others_go_their_way(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.warns() as seen, noting():
        warnings.warn("something of a library", UserWarning, stacklevel=1)
        warnings.warn_explicit("it will go", DeprecationWarning, str(phases.PACKAGE / "native.py"), 1)
    assert [str(one.message) for one in seen] == ["something of a library", "it will go"]
    assert Path(seen[0].filename).name == "test_phases.py" and capsys.readouterr().err == ""
