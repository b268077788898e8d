"""A constitutional run to read: help and harm after each phase, what each principle changed, and examples of it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pellucid.alignment.before_after import quoted
from pellucid.alignment.constitution import Constitution, read_constitution
from pellucid.alignment.constitution_files import CONSTITUTION, CRITIQUES, JUDGEMENTS, REPORT, TRANSCRIPTS, read_lines
from pellucid.alignment.constitution_measure import saved
from pellucid.checkpoints.atomic import atomic_file
from pellucid.data.messages import text_of
from pellucid.errors import InputError, did_you_mean

MODELS = {"base": "base", "sft": "after phase 1", "dpo": "after phase 2", "ppo": "after phase 2, PPO"}
SHOWN = 3  # examples of each principle

Record = dict[str, Any]


def write_report(run: Path) -> None:
    """`report.md` in the run folder."""
    with atomic_file(run / REPORT) as temporary:
        temporary.write_text(as_markdown(run), encoding="utf-8")


def as_markdown(run: Path, principle: str | None = None) -> str:
    """The report of a run as far as it has got; with `principle` all examples of that one.

    Raises `InputError` for a folder that is no constitutional run, and for a principle that it does not have.
    """
    if not (run / CONSTITUTION).is_file():
        raise InputError(f"{run}: there is no constitutional run; pellucid constitution RECIPE makes one")
    constitution = read_constitution(str(run / CONSTITUTION))
    names = [one.name for one in constitution.principles]
    if principle is not None and principle not in names:
        raise InputError(
            f"the constitution of {run} has no principle {principle!r}"
            f"{did_you_mean(principle, names) or '; it has ' + ', '.join(names)}"
        )
    revised, judged = (read_lines(run / folder / TRANSCRIPTS) for folder in (CRITIQUES, JUDGEMENTS))
    lines = [f"# {run}, by the constitution “{constitution.name}”"]
    if principle is None:
        lines += ["", *table_of_measures(run), "", *table_of_principles(constitution, revised, judged)]
    for name in names if principle is None else [principle]:
        most = SHOWN if principle is None else None
        lines += ["", f"## The principle “{name}”"]
        lines += itertools.chain.from_iterable(itertools.islice(revisions(revised, name), most))
        lines += itertools.chain.from_iterable(itertools.islice(preferences(judged, name), most))
    return "\n".join(lines) + "\n"


def table_of_measures(run: Path) -> Iterator[str]:
    """Help and harm of each model that was measured."""
    found = {shown: measures for name, shown in MODELS.items() if (measures := saved(run, name)) is not None}
    if not found:
        yield "No model has been measured yet."
        return
    yield row(["help and harm, on prompts that nothing was learnt from", *found])
    yield "|---|" + "---:|" * len(found)
    yield from (row([measures[0].what, *map(str, measures)]) for measures in zip(*found.values(), strict=True))


def table_of_principles(
    constitution: Constitution, revised: Sequence[Record], judged: Sequence[Record]
) -> Iterator[str]:
    """How often each principle was drawn, and how often it changed or decided something."""
    yield row(
        [
            "principle",
            "critiques",
            "answers changed",
            "pairs judged",
            "the judge's own certainty",
            "decided by the place",
        ]
    )
    yield "|---|---:|---:|---:|---:|---:|"
    for one in constitution.principles:
        turns = [turn for record in revised for turn in steps(record) if turn["principle"] == one.name]
        pairs = [record for record in judged if record["principle"] == one.name and record["probability"] is not None]
        sure = sum(abs(record["probability"] - 0.5) + 0.5 for record in pairs) / max(1, len(pairs))
        yield row([
            one.name, f"{len(turns)}", f"{sum(turn['before'] != turn['revision'] for turn in turns)}", f"{len(pairs)}",
            f"{sure:.0%}" if pairs else "-", f"{sum(record['swayed'] for record in pairs)}",
        ])  # fmt: skip


def revisions(revised: Sequence[Record], principle: str) -> Iterator[list[str]]:
    """The answers that a principle changed: prompt, answer, critique, revision."""
    for record in revised:
        for turn in steps(record):
            if turn["principle"] == principle and turn["before"] != turn["revision"]:
                parts = [("Asked", said(record)), ("Answered", turn["before"]), ("Critique", turn["critique"])]
                yield shown([*parts, ("Revised", turn["revision"])])


def preferences(judged: Sequence[Record], principle: str) -> Iterator[list[str]]:
    """The pairs that a principle decided: prompt, the better answer, the other one."""
    for record in judged:
        chance = record["probability"]
        if record["principle"] == principle and chance not in (None, 0.5):
            first, second = record["answers"] if chance > 0.5 else record["answers"][::-1]
            sure = f"Preferred, {max(chance, 1 - chance):.0%}"
            yield shown([("Asked", said(record)), (sure, first), ("To", second)])


def steps(record: Record) -> Iterator[dict[str, str]]:
    """The rounds of a transcript, each with the answer before it."""
    before = record["answer"]
    for turn in record["rounds"]:
        yield {**turn, "before": before}
        before = turn["revision"]


def said(record: Record) -> str:
    """What the user said last."""
    return text_of(record["prompt"][-1])


def shown(parts: Sequence[tuple[str, str]]) -> list[str]:
    lines = ["", "---"]
    for who, text in parts:
        lines += ["", f"{who}:", "", quoted(text or "(nothing)")]
    return lines


def row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
