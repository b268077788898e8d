"""`pellucid prefer`: answers of a model are ranked, by a person or a judge, and two models compared."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from math import comb
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pellucid.cli import running
from pellucid.cli.data_show import silenced
from pellucid.errors import InputError, PellucidError

if TYPE_CHECKING:
    from pellucid.alignment.candidates import Candidates, Prompt
    from pellucid.alignment.collection import Tally
    from pellucid.alignment.judges import Judge, Judged
    from pellucid.cli.timeline import Timeline
    from pellucid.inference.params import SamplingParams

PERSON = "person"
SKIP, STOP = "s", "q"


def prefer(
    context: typer.Context,
    model: running.Model,
    prompts: Annotated[
        Path,
        typer.Option(help='Prompts: text, {"prompt": ...} or {"messages": [...]}, a line each.', show_default=False),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The preferences, a line each pair; it goes on where it was.")
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="Another model: how often are MODEL's answers preferred to its?")
    ] = None,
    judge: Annotated[
        str,
        typer.Option(
            help="person, a reward model, a rule (exact, file.py:function ...), or the address of an API "
            "(http://127.0.0.1:8000/v1)."
        ),
    ] = PERSON,
    judge_model: Annotated[str | None, typer.Option(help="Of the API; its first one if not given.")] = None,
    judge_key: Annotated[str | None, typer.Option(help="Of the API.", envvar="PELLUCID_JUDGE_KEY")] = None,
    judge_seconds: Annotated[float, typer.Option(min=0.1, help="How long the API may take for a verdict.")] = 60.0,
    answers: Annotated[int, typer.Option("--answers", "-k", min=2, max=9, help="Answers to each prompt.")] = 2,
    temperature: Annotated[float, typer.Option(min=0, help="Of the answers.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="Of the answers.")] = 1.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of each answer.")] = 256,
    seed: Annotated[int, typer.Option(help="The same seed gives the same answers.")] = 0,
    dtype: running.Dtype = "auto",
    quantize: running.Quantize = None,
    as_json: Annotated[bool, typer.Option("--json", help="The result as one JSON object.")] = False,
) -> None:
    """Rank a model's answers in the terminal, or have a judge do it; or compare two models.

    With -o each choice is saved at once, as {"prompt", "chosen", "rejected"} for pellucid reward and pellucid dpo; q
    stops, and the same command goes on. With --against each model answers once, you or the judge prefer one without
    knowing whose it is, and the win rate comes with its 95 % confidence interval. A model behind an API is asked in
    both orders, and believed where it says the same.

    Example: pellucid prefer smollm2 --prompts prompts.jsonl -o preferences.jsonl
    """
    import json

    from pellucid.alignment.candidates import read_prompts
    from pellucid.checkpoints.source import find_source
    from pellucid.inference.params import SamplingParams

    if (output is None) == (against is None):
        raise InputError("give either -o FILE, to collect preferences, or --against MODEL, to compare two")
    for name in (model,) if against is None else (model, against):
        find_source(name)  # a wrong name is said before anything is asked
    params = SamplingParams(temperature=temperature, top_p=top_p, max_tokens=max_tokens)
    counts = Counter[str]()
    asked = read_prompts(prompts, counts)
    if counts["there twice"]:
        running.note(f"{counts['there twice']:,} prompts are there twice, and asked once")
    chosen = open_judge(judge, judge_model, judge_key, judge_seconds, seed)
    drawn = Drawing(context.obj, dtype, quantize, params, seed)
    if output is not None:
        about = {
            "model": model,
            "answers": answers,
            **params.model_dump(include={"temperature", "top_p", "max_tokens"}),
            "dtype": dtype,
            "quantize": quantize,
        }
        tally = collect(output, {**about, "seed": seed}, asked, drawn, answers, chosen, judge)
        if drawn.cut:
            running.note(f"{drawn.cut:,} answers were cut off by --max-tokens {max_tokens} and left out: allow more")
        print(json.dumps(vars(tally)) if as_json else said_of(tally, output))
        return
    assert against is not None
    from pellucid.alignment.win_rate import win_rate

    ours, theirs = (drawn.one_each(name, asked) for name in (model, against))
    if drawn.cut:
        running.note(f"{drawn.cut:,} answers were cut off by --max-tokens {max_tokens}, and are judged so: allow more")
    rate = win_rate(asked, ours, theirs, chosen)
    if not rate.count and not rate.unusable:
        raise PellucidError(f"{judge} preferred no answer to another, so there is no win rate: judge one pair at least")
    if not rate.count:
        raise PellucidError(f"no verdict could be read from what {judge} said: give another judge, or --judge-model")
    low, high = rate.interval
    if as_json:
        fields = {name: getattr(rate, name) for name in rate.__slots__}
        print(json.dumps({"rate": rate.rate, "low": low, "high": high, **fields}))
        return
    print(f"A is {model}, B is {against}. {rate}.")
    if rate.swayed:
        print(f"{rate.swayed:,} of the ties are pairs of which the judge preferred whichever stood first, or last.")
    if rate.unusable:
        print(f"{rate.unusable:,} pairs do not count: no verdict could be read.")
    if rate.unsaid:
        print(f"{rate.unsaid:,} pairs do not count: they were skipped, or the judge could not read or score an answer.")


class Drawing:
    """Answers of models that are opened when they are needed. cut: how many were not whole."""

    def __init__(self, timeline: Timeline, dtype: str, quantize: str | None, params: SamplingParams, seed: int) -> None:
        self.timeline, self.dtype, self.quantize, self.params, self.seed = timeline, dtype, quantize, params, seed
        self._open: tuple[str, Any] = ("", None)
        self._counts = Counter[str]()

    @property
    def cut(self) -> int:
        return self._counts["cut off"]

    def __call__(self, name: str, prompts: Sequence[Prompt], count: int, *, whole: bool = True) -> list[Candidates]:
        from pellucid.alignment.candidates import candidates

        if self._open[0] != name:
            self._open = (name, running.open_engine(name, self.dtype, self.timeline, quantize=self.quantize))
        engine = self._open[1]
        return candidates(engine, prompts, count, self.params, self.seed, whole=whole, counts=self._counts)

    def one_each(self, name: str, prompts: Sequence[Prompt]) -> list[str]:
        """One answer to each prompt, perhaps an empty one, or one that is cut off."""
        return [one.answers[0] if one.answers else "" for one in self(name, prompts, 1, whole=False)]


def open_judge(name: str, model: str | None, key: str | None, seconds: float, seed: int) -> Judge:
    """The judge called so. Raises `InputError` where there is none."""
    from pellucid.alignment.judges import ByEndpoint, by_reward_model, by_rule
    from pellucid.alignment.rewards import BUILT_IN, find_reward

    if name == PERSON:
        return Person(seed)
    if name.startswith(("http:", "https:")):
        from pellucid.alignment.endpoint import Endpoint

        return ByEndpoint(Endpoint.open(name, model, key, seconds))
    if name in BUILT_IN or (":" in name and not Path(name).exists()):
        return by_rule(find_reward(name))
    if not Path(name).expanduser().exists() and "/" not in name:
        find_reward(name)  # says what there is
    from pellucid.alignment.reward_model import RewardModel

    return by_reward_model(RewardModel.load(name))


def collect(
    output: Path, about: dict[str, Any], prompts: list[Prompt], drawn: Drawing, count: int, judge: Judge, name: str
) -> Tally:
    """One session of a collection."""
    from pellucid.alignment.collection import Collection

    collection = Collection(output, about)
    left = collection.left(prompts)
    if len(left) < len(prompts):
        running.note(f"{len(prompts) - len(left):,} of {len(prompts):,} prompts are done already")
    return collection.collect(prompts, lambda several: drawn(about["model"], several, count), judge, name)


def said_of(tally: Tally, output: Path) -> str:
    """What a session came to."""
    parts = [f"{output}: {tally.prompts:,} prompts judged, {tally.pairs:,} pairs"]
    for count, what in (
        (tally.passed, "prompts without a pair"),
        (tally.alike, "prompts more to which all answers were equal, or fewer than two whole"),
        (tally.swayed, "pairs of which the judge preferred a place"),
        (tally.unusable, "replies from which no verdict could be read"),
        (tally.unsaid, "pairs skipped, or with an answer that the judge could not read or score"),
    ):
        if count:
            parts.append(f"{count:,} {what}")
    return ", ".join(parts)


class Person:
    """The judge at the terminal: sees answers in an order that is drawn, and no names."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, several: Iterable[Candidates]) -> Iterator[Judged]:
        from pellucid.alignment.judges import Judged, as_text

        typer.secho(f"{SKIP} skips a prompt, {STOP} stops; what was chosen is saved, and is gone on from", dim=True)
        for number, one in enumerate(several, 1):
            order = self.order(one)
            typer.secho(f"\n{number}", dim=True)
            typer.echo(silenced(as_text(one.prompt.messages)))
            for place, answer in enumerate(order, 1):
                typer.secho(f"\n[{place}] ", bold=True, nl=False)
                typer.echo(silenced(one.answers[answer]))
            groups = ask(len(order))
            if groups is None:
                return
            if not groups:
                yield Judged((), unsaid=comb(len(order), 2))
                continue
            places = [place for group in groups for place in group]
            rank = {place: n for n, group in enumerate(groups) for place in group}
            better = [(order[i], order[j]) for i in places for j in places if rank[i] < rank[j]]
            yield Judged(tuple(better))

    def order(self, one: Candidates) -> list[int]:
        """In which order the answers are shown."""
        import numpy as np

        from pellucid.data.order import permutation

        count = len(one.answers)
        order: list[int] = permutation(count, "shown", self.seed, one.prompt.key)(np.arange(count)).tolist()
        return order


def ask(count: int) -> list[list[int]] | None:
    """A ranking, typed; no groups for a prompt that is skipped, None to stop."""
    how = "1 or 2, 0 for neither" if count == 2 else "best first, such as 2 1 3; 1=3 for neither; 0 for none"
    while True:
        try:
            text = input(f"\nWhich is better ({how})? ").strip().lower()
        except EOFError:
            return None
        if text == STOP:
            return None
        if text == SKIP:
            return []
        groups = read_ranking(text, count)
        if groups is not None:
            return groups
        typer.echo(f"Numbers from 1 to {count}, each once at most; {SKIP} to skip, {STOP} to stop.")


def read_ranking(text: str, count: int) -> list[list[int]] | None:
    """What was typed as groups of places from 0, the best first; those not named are behind. None: it is no ranking."""
    if text == "0":
        return [list(range(count))]
    words = [word for word in re.split(r"[\s,>]+", text) if word]
    if len(words) == 1 and words[0].isdigit():
        words = list(words[0])
    groups = [re.split(r"=+", word) for word in words]
    numbers = [number for group in groups for number in group]
    if not numbers or not all(re.fullmatch(r"[1-9]", number) and int(number) <= count for number in numbers):
        return None
    if len(set(numbers)) < len(numbers):
        return None
    ranked = [[int(number) - 1 for number in group] for group in groups]
    rest = [place for place in range(count) if str(place + 1) not in numbers]
    return [*ranked, rest] if rest else ranked
