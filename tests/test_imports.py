"""`import pellucid` and every `--help` are instant: they load nothing heavy (decision 8 of the design)."""

from __future__ import annotations

import json
import subprocess
import sys

HEAVY = ("torch", "numpy", "transformers", "tokenizers", "safetensors", "huggingface_hub", "jinja2")


def loaded_after(program: str) -> set[str]:
    """Which of HEAVY are in sys.modules once a new Python has run the program."""
    end = f"\nimport json, sys\nprint(json.dumps([name for name in {HEAVY!r} if name in sys.modules]), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program + end], capture_output=True, text=True, check=True)
    return set(json.loads(done.stderr.splitlines()[-1]))


def test_the_check_can_see() -> None:
    assert "numpy" in loaded_after("import numpy")


def test_import_pellucid_is_light() -> None:
    assert loaded_after("import pellucid; pellucid.__version__") == set()


def test_help_is_light() -> None:
    program = """
from typer.main import get_command
from pellucid.cli import app as frame

def ask(group, prefix):
    for name, command in group.commands.items():
        assert frame.run([*prefix, name, "--help"]) == 0
        if hasattr(command, "commands"):
            ask(command, [*prefix, name])

assert frame.run(["--help"]) == 0
ask(get_command(frame.app), [])
"""
    assert loaded_after(program) == set()
