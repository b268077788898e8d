"""`pellucid data world`: TinyWorld as files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pellucid.data.tinyworld import TinyWorld

FILES = ("documents.jsonl", "conversations.jsonl", "questions.jsonl", "facts.jsonl", "preferences.jsonl")


def world(
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write.")],
    people: Annotated[int, typer.Option(min=1, help="How many people live in it; the rest follows from that.")] = 60,
    seed: Annotated[int, typer.Option(help="The same seed and number give the same world.")] = 0,
    tellings: Annotated[int, typer.Option(min=1, help="About how often the documents tell each fact.")] = 50,
) -> None:
    """Write a small invented world whose every fact is known: texts, conversations, preferences, questions, facts.

    documents.jsonl is for pellucid pretrain, conversations.jsonl for pellucid sft, preferences.jsonl (what is true
    before what is made up) for pellucid dpo; questions.jsonl has the accepted answers (none where the texts leave it
    open), by people whom conversations are about (train) or not (held out).
    Example: pellucid data world --people 60 -o world/
    """
    from pellucid.checkpoints.atomic import atomic_folder, check_replaceable
    from pellucid.data.tinyworld import TinyWorld

    check_replaceable(output, FILES, FILES[0], "a world's texts")
    made = TinyWorld(seed=seed, people=people)
    with atomic_folder(output) as folder:
        written = {
            "documents": write(folder / FILES[0], documents(made, tellings)),
            "conversations": write(folder / FILES[1], made.conversations(seed)),
            "questions": write(folder / FILES[2], questions(made)),
            "facts": write(folder / FILES[3], map(asdict, made.facts)),
            "preferences": write(folder / FILES[4], made.preferences(seed)),
        }
    print(f"{output}: {people:,} people; {', '.join(f'{count:,} {what}' for what, count in written.items())}")


def documents(made: TinyWorld, tellings: int) -> Iterator[dict[str, str]]:
    for document in made.documents(tellings=tellings):
        yield {"text": document.text, "kind": document.kind}


def questions(made: TinyWorld) -> Iterator[dict[str, Any]]:
    for people in ("train", "held out"):
        for is_open in (False, True):
            for question in made.questions(people, open=is_open):
                yield {**asdict(question), "people": people}


def write(path: Path, rows: Iterable[Any]) -> int:
    """JSON, one a line; how many."""
    count = 0
    with path.open("w", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count
