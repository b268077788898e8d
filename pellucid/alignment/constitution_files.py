"""What a constitutional run keeps: its recipe, the stages that are done, and a JSON line for each example.

<run>/  config.yaml        the recipe          constitution.yaml   the constitution, as it was read
        prompts.yaml       digests of the prompts, which are to stay what they were
        generation.yaml    precision and threads of all that is generated
        obeying/           of a TinyWorld: a model that does whatever it is asked (a run of its own)
        obedience/         the conversations that it learnt that from
        critiques/         transcripts.jsonl: prompt, answer, and of each round principle, critique, revision
        sft/               the model after phase 1 (a run of its own)
        judgements/        transcripts.jsonl: prompt, two answers, principle, how likely the first is better
        dpo/               the model after phase 2 (a run of its own); or reward/ and ppo/
        measured/          NAME.json, NAME.jsonl: help and harm of each model, and the answers counted
        report.md          all of that, to read
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import yaml

from pellucid.alignment.constitution import Constitution, read_constitution
from pellucid.alignment.constitution_recipe import ConstitutionRecipe
from pellucid.checkpoints.atomic import atomic_file, refused, sweep
from pellucid.checkpoints.source import RUN_RECIPE
from pellucid.errors import InputError
from pellucid.training.lock import lock
from pellucid.training.run import compare

CONSTITUTION, TRANSCRIPTS, REPORT = "constitution.yaml", "transcripts.jsonl", "report.md"
PROMPTS, GENERATION = "prompts.yaml", "generation.yaml"
CRITIQUES, JUDGEMENTS, MEASURED = "critiques", "judgements", "measured"
T = TypeVar("T")


def begin(recipe: ConstitutionRecipe) -> tuple[Path, Constitution, BinaryIO]:
    """Takes the run folder for this process, begun now or before: where it is, its constitution, and its lock.

    Raises `InputError` where the folder is another run's, or was begun with another recipe or constitution.
    """
    path = Path(recipe.run).expanduser()
    if path.is_file():
        raise InputError(f"run = {str(path)!r} is a file; give the name of a folder")
    strange = [entry.name for entry in path.iterdir() if entry.name[0] != "."] if path.is_dir() else []
    if strange and not (path / CONSTITUTION).is_file():
        raise InputError(f"{path} holds {min(strange)!r}, and no constitutional run: choose another run folder")
    path.mkdir(parents=True, exist_ok=True)
    held = lock(path)
    try:
        sweep(path)
        constitution = read_constitution(recipe.constitution)
        settle(path / CONSTITUTION, constitution.model_dump(mode="json"))  # first: by it the folder is known
        settle(path / RUN_RECIPE, recipe.model_dump(mode="json"))
    except BaseException:
        held.close()
        raise
    return path, constitution, held


def settle(file: Path, now: dict[str, Any]) -> None:
    """Writes `now` down, or sees that it is what is there; before the first stage it may still change."""
    was = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else now
    differences = compare(flat_lists(was), flat_lists(now)) if isinstance(was, dict) else ["it is no YAML mapping"]
    begun = [entry for entry in file.parent.iterdir() if entry.is_dir()]
    if differences and begun:
        raise InputError(
            f"{file} was another one when the run began ({'; '.join(differences)}): choose another run folder, or take "
            "that back to go on with this run"
        )
    if was != now or not file.is_file():
        with atomic_file(file) as temporary:
            temporary.write_text(yaml.safe_dump(now, sort_keys=False, allow_unicode=True, width=120), encoding="utf-8")


def flat_lists(content: Any) -> Any:
    """Lists as mappings from their numbers, so that a difference inside one is named by its place."""
    if isinstance(content, dict):
        return {name: flat_lists(value) for name, value in content.items()}
    if isinstance(content, list):
        return {str(number): flat_lists(value) for number, value in enumerate(content, 1)}
    return content


def kept(
    file: Path, asked: Sequence[T], make: Callable[[Sequence[T], int], Iterator[dict[str, Any]]], together: int,
    tell: Callable[[int, int], None],
) -> list[dict[str, Any]]:  # fmt: skip
    """A record for each of `asked`: those in `file`, and the rest made `together` at a time and written at once.

    make: is given some of `asked` and the number of the first. tell: is told how many of how many are there.
    Whoever is killed on the way loses what was under way, and no more. Raises `PellucidError` when the disk refuses.
    """
    records = read_lines(file)
    if file.is_file():
        with file.open("r+b") as stream:
            stream.truncate(len(whole_lines(file)))
    while len(records) < len(asked):
        tell(len(records), len(asked))
        start = len(records)
        new = list(make(asked[start : start + together], start))
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in new)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("ab") as stream:
                stream.write(text.encode())
        except OSError as error:
            raise refused(file, error, "make room and run the same command again: it goes on from here") from error
        records += new
    return records


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The records of a file. A last line that is not whole, of a writer that was killed or is at work, is left out."""
    if not file.is_file():
        return []
    try:
        return [json.loads(line) for line in whole_lines(file).splitlines()]
    except ValueError as error:
        raise InputError(f"{file}: a line is not JSON ({error}): take the file away, and it is made again") from None


def whole_lines(file: Path) -> bytes:
    """The content of a file up to the end of its last line."""
    content = file.read_bytes()
    return content[: content.rfind(b"\n") + 1]


def write_lines(file: Path, records: Sequence[dict[str, Any]]) -> Path:
    """JSON, one a line; whole or not at all."""
    with atomic_file(file) as temporary:
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        temporary.write_text(text, encoding="utf-8")
    return file
