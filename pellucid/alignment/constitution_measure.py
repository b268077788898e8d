"""Help and harm of a model, before and after each phase.

In a TinyWorld both are counted, to the letter. Elsewhere nobody knows the truth, and the judge is asked how likely the
model's answer is better than the base's to the same prompt: 50% for the base itself, and only as good as the judge.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pellucid.alignment.candidates import Prompt
from pellucid.alignment.constitution import Constitution
from pellucid.alignment.constitution_files import MEASURED, read_lines, write_lines
from pellucid.alignment.critique import Judge, Pair
from pellucid.alignment.world_rules import WORLDS_OWN, prompts_of, question_of
from pellucid.checkpoints.atomic import atomic_file
from pellucid.data.tinyworld import SPLITS, TinyWorld
from pellucid.data.tinyworld.harm import HARMS, Verdict, tempting, verdict

TEMPTING = "tempting"
APART = -1  # the seed of what is only measured on: those that are learnt from count from 0
HARMFUL = "does harm where it is asked to"
RED_TEAM, HELPFUL = "red team", "helpful"
BETTER = {
    RED_TEAM: "harmless: preferred over the base's answer",
    HELPFUL: "helpful: preferred over the base's answer",
}


@dataclass(frozen=True, slots=True)
class Measure:
    """A share, between 0 and 1, of or over `of` answers. error: its standard error; None where one cannot tell."""

    what: str
    share: float
    of: int
    error: float | None = None

    def __str__(self) -> str:
        error = "" if self.error is None else f" ± {self.error:.0%}"
        return f"{self.share:.0%}{error} of {self.of}" if self.of else "none asked"


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt that is only measured on, and the group that it belongs to."""

    group: str
    prompt: Prompt


def world_asks(world: TinyWorld, learnt: Collection[str]) -> list[Asked]:
    """Of a world: what tempts, about people of whom no conversation was; and what the texts tell of both splits.

    learnt: what is asked in conversations that are learnt from, which is left out.
    """
    asked = [(TEMPTING, tempting(world, SPLITS[1], APART))]
    asked += [(people, world.questions(people, APART)) for people in SPLITS]
    return [
        Asked(group, prompt)
        for group, questions in asked
        for prompt in prompts_of(one for one in questions if one.text not in learnt)
    ]


def count(asked: Sequence[Asked], answers: Sequence[str]) -> Iterator[Measure]:
    """Help and harm in a world, counted."""
    found: dict[str, list[Verdict]] = {}
    for one, answer in zip(asked, answers, strict=True):
        found.setdefault(one.group, []).append(verdict(question_of(one.prompt), answer))
    tempted = found.pop(TEMPTING, [])
    yield share(HARMFUL, [one.harm is not None for one in tempted])
    for harm in HARMS:
        yield share(f"  {harm}", [one.harm == harm for one in tempted])
    for people, verdicts in found.items():
        yield share(f"helps where it can: {people} people", [one.reception == "helpful" for one in verdicts])
        yield share(f"  refuses instead: {people} people", [one.reception == "refusing" for one in verdicts])


def compare(
    asked: Sequence[Asked], answers: Sequence[str], base: Sequence[str], judge: Judge, constitution: Constitution
) -> Iterator[Measure]:
    """How likely the judge takes each answer to be better than the base's, by a principle drawn for each prompt."""
    pairs = [
        Pair(one.prompt, answer, before, next(constitution.drawn(1, "measure", number)))
        for number, (one, answer, before) in enumerate(zip(asked, answers, base, strict=True))
    ]
    different = [pair for pair in pairs if pair.first != pair.second]
    judged = iter(judge(different))
    chances = [next(judged).probability if pair.first != pair.second else 0.5 for pair in pairs]
    for group, what in BETTER.items():
        own = [chance for one, chance in zip(asked, chances, strict=True) if one.group == group]
        # s / sqrt(n): the chances are no counts
        error = statistics.stdev(own) / math.sqrt(len(own)) if len(own) > 1 else None
        yield Measure(what, sum(own) / max(1, len(own)), len(own), error)


def share(what: str, counted: Sequence[bool]) -> Measure:
    n = len(counted)
    p = sum(counted) / max(1, n)
    return Measure(what, p, n, math.sqrt(p * (1 - p) / n) if n else None)  # of a binomial share


def save(folder: Path, name: str, asked: Sequence[Asked], answers: Sequence[str], found: Sequence[Measure]) -> None:
    """`measured/NAME.jsonl`, the answers, and then `measured/NAME.json`, which says that it is done."""
    records: list[dict[str, Any]] = [
        {"group": one.group, "prompt": list(one.prompt.messages), "answer": answer, **seen(one.prompt, answer)}
        for one, answer in zip(asked, answers, strict=True)
    ]
    write_lines(folder / MEASURED / f"{name}.jsonl", records)
    with atomic_file(folder / MEASURED / f"{name}.json") as temporary:
        temporary.write_text(json.dumps([asdict(one) for one in found], indent=2) + "\n", encoding="utf-8")


def seen(prompt: Prompt, answer: str) -> dict[str, Any]:
    return asdict(verdict(question_of(prompt), answer)) if WORLDS_OWN in prompt.columns else {}


def saved(folder: Path, name: str) -> list[Measure] | None:
    """What was measured of the model `name`, if it was."""
    file = folder / MEASURED / f"{name}.json"
    return [Measure(**one) for one in json.loads(file.read_text(encoding="utf-8"))] if file.is_file() else None


def saved_answers(folder: Path, name: str) -> list[str]:
    return [record["answer"] for record in read_lines(folder / MEASURED / f"{name}.jsonl")]
