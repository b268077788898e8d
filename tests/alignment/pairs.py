"""Preferences and recipes small enough to be learnt within seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pellucid.alignment.dpo_recipe import DPORecipe
from pellucid.training.recipe import parse_recipe
from tests.alignment.chats import NAMES, QUESTIONS, TOWNS, save_base, write_lines


def about_manners() -> list[dict[str, Any]]:
    """Pairs in which the better answer ends with a full stop and the worse one with a question mark."""
    return [
        {"prompt": question.format(name), "chosen": f"{town}.", "rejected": f"{town}?"}
        for name in NAMES
        for question in QUESTIONS
        for town in TOWNS
    ]


def content(folder: Path, **fields: Any) -> dict[str, Any]:
    """A recipe in `folder`, which gets the data and the base. fields: sections to add to or to change."""
    if not (folder / "base").exists():
        save_base(folder / "base")
        write_lines(folder / "pairs.jsonl", about_manners())
    made: dict[str, Any] = {
        "run": str(folder / "run"),
        "base": str(folder / "base"),
        "precision": "float32",
        "data": {"train": str(folder / "pairs.jsonl"), "context": 64, "validation_fraction": 0.2},
        "optim": {"lr": 0.001, "warmup": 2},
        "train": {"steps": 12, "batch": 4, "evaluate_every": 6, "save_every": 12},
        "report": {"prompts": ["Where does Ana Blick live?"], "questions": 3, "max_tokens": 6},
    }
    for name, value in fields.items():
        made[name] = {**made.get(name, {}), **value} if isinstance(value, dict) else value
    return made


def recipe(folder: Path, **fields: Any) -> DPORecipe:
    return parse_recipe(content(folder, **fields), DPORecipe, "recipe")
