"""A toy task with a known reward: answer in small letters. A model that knows nothing gets about 0.1 by chance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.alignment.chats import save_base, write_lines

PROMPTS = 24

fail_at: set[int] = set()  # calls of `letters`, the first being 1, that raise
calls: list[int] = []


def letters(completions: Sequence[str], **_: Any) -> list[float]:
    """Which share of the answer's 6 places has one of the letters a to z: 1 is the most that there is."""
    calls.append(len(completions))
    if len(calls) in fail_at:
        raise RuntimeError("out of ink")
    return [sum("a" <= letter <= "z" for letter in one[:6]) / 6 for one in completions]


def content(folder: Path, **changes: Any) -> dict[str, Any]:
    """A recipe in `folder`, which gets a base that knows nothing, and prompts; `changes` to its sections."""
    if not (folder / "base").exists():
        save_base(folder / "base")
        write_lines(
            folder / "prompts.jsonl", [{"prompt": f"Say {number}", "level": number} for number in range(PROMPTS)]
        )
    made: dict[str, Any] = {
        "run": str(folder / "run"),
        "base": str(folder / "base"),
        "precision": "float32",
        "data": {"train": str(folder / "prompts.jsonl"), "context": 48, "chat": False},
        "rollouts": {"answers": 8, "max_tokens": 6},
        "rewards": "tests.alignment.toy:letters",
        "optim": {"lr": 0.005},
        "train": {"steps": 20, "batch": 8, "evaluate_every": 1000, "save_every": 1000},
        "report": {"questions": 3, "max_tokens": 6},
    }
    for section, fields in changes.items():
        made[section] = made.get(section, {}) | fields if isinstance(fields, dict) else fields
    return made
