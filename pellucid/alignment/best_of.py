"""More answers instead of more training: what choosing among n of them is worth, against the tokens that they cost.

For every prompt N answers are drawn once; what smaller numbers would give follows from those.

    best of n       the one that the reward likes best (Stiennon et al. 2020): its chance to be right among n of the N
    majority vote   the answer that most of them end in (self-consistency, Wang et al. 2023), where a final answer can
                    be told from its reasoning
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path
from typing import Any

from pellucid.alignment.checkers import final
from pellucid.alignment.playing import said
from pellucid.alignment.prompts import Prompt
from pellucid.alignment.rewards import Reward, total_rewards
from pellucid.checkpoints.atomic import atomic_file
from pellucid.data.order import random_number
from pellucid.data.tinyworld.questions import normalised
from pellucid.errors import InputError
from pellucid.inference.engine import Engine
from pellucid.inference.output import Outputs
from pellucid.inference.params import SamplingParams
from pellucid.training.curves import RATE, STYLE, TRAINING, VALIDATION

SEEDS = 1 << 62
DRAWS = 64  # of n among the N answers, for votes, where not all of them can be counted


@dataclass(frozen=True, slots=True)
class Point:
    """What n answers a prompt give. tokens: that they take, a prompt. one, best, vote: the mean reward of an answer, of
    the best of n, and of the answer that is voted for."""

    n: int
    tokens: float
    one: float
    best: float
    vote: float


@dataclass(frozen=True, slots=True)
class Drawn:
    """The N answers to a prompt: text, how many tokens, and what each earned."""

    texts: tuple[str, ...]
    tokens: tuple[int, ...]
    rewards: tuple[float, ...]


def draw(
    engine: Engine, prompts: Sequence[Prompt], rewards: Sequence[Reward], count: int, *, temperature: float = 1.0,
    max_tokens: int = 256, seed: int = 0, in_chat: bool = True,
) -> list[Drawn]:  # fmt: skip
    """`count` answers to each prompt, and their rewards. Errors as `Engine.add` and `Reward` raise them."""
    params = SamplingParams(temperature=temperature, max_tokens=max_tokens, n=count)
    with Outputs(engine) as outputs:
        for number, prompt in enumerate(prompts):
            own = params.with_({"seed": random_number(SEEDS, "best of n", seed, number)})
            outputs.add(prompt.ids, own, in_chat=in_chat)
        answered = [output.answers for output in outputs.answered()]
    found = []
    for prompt, answers in zip(prompts, answered, strict=True):
        columns: dict[str, list[Any]] = {name: [value] * count for name, value in prompt.columns.items()}
        texts = [one.text for one in answers]
        given = [said(prompt.given, text) for text in texts]
        totals, _ = total_rewards(rewards, [prompt.given] * count, given, columns)
        found.append(Drawn(tuple(texts), tuple(len(one.token_ids) for one in answers), tuple(totals)))
    return found


def curve(drawn: Sequence[Drawn], numbers: Sequence[int], seed: int = 0) -> list[Point]:
    """A point for each of `numbers`, none above the number of answers that were drawn."""
    points = []
    for n in numbers:
        best = [expected_best(one.rewards, n) for one in drawn]
        vote = [expected_vote(one, n, f"{seed} {number}") for number, one in enumerate(drawn)]
        alone = [_mean(one.rewards) for one in drawn]
        tokens = n * _mean([_mean(one.tokens) for one in drawn])
        points.append(Point(n, tokens, _mean(alone), _mean(best), _mean(vote)))
    return points


# E max = sum over the sorted r_(i) of r_(i) C(i - 1, n - 1) / C(N, n): r_(i) is the largest where the n - 1 others come
# from the i - 1 below it (the estimator of pass@k, Chen et al. 2021, equation 1, for any rewards)
def expected_best(rewards: Sequence[float], n: int) -> float:
    """The mean of the largest reward over all ways to take n of the answers."""
    ways = math.comb(len(rewards), n)
    return math.fsum(r * math.comb(i, n - 1) / ways for i, r in enumerate(sorted(rewards)))


def expected_vote(drawn: Drawn, n: int, seed: str = "") -> float:
    """The mean reward of the answer that most of n give, the first of equals: over all ways to take n of the answers,
    or, where there are more than `DRAWS`, over so many that are drawn by `seed`."""
    keys = [normalised(final(text)) for text in drawn.texts]
    whole = len(keys)
    ways: Iterable[Sequence[int]] = combinations(range(whole), n)
    if math.comb(whole, n) > DRAWS:
        ways = (random.Random(f"vote {seed} {turn}").sample(range(whole), n) for turn in range(DRAWS))
    return _mean([drawn.rewards[_winner(keys, places)] for places in ways])


def _winner(keys: Sequence[str], places: Sequence[int]) -> int:
    """The first of `places` with the answer that most of them have."""
    votes = Counter(keys[place] for place in places)
    most = max(votes.values())
    return next(place for place in places if votes[keys[place]] == most)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def table(points: Sequence[Point]) -> str:
    """The points as lines of text."""
    lines = [f"{'n':>4} {'tokens':>8} {'one':>7} {'vote':>7} {'best':>7}"]
    lines += [f"{p.n:>4} {p.tokens:>8,.0f} {p.one:>7.3f} {p.vote:>7.3f} {p.best:>7.3f}" for p in points]
    return "\n".join(lines)


def check_pictures() -> None:
    """Raises `InputError` where Matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        raise InputError("Matplotlib is not installed, so there is no picture: pip install 'pellucid[plot]'")


def draw_picture(points: Sequence[Point], path: Path) -> None:
    """Mean reward against tokens a prompt, as an SVG file."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.add_subplot()
        tokens = [point.tokens for point in points]
        for name, values, colour in (
            ("best of n", [point.best for point in points], TRAINING),
            ("majority vote", [point.vote for point in points], VALIDATION),
            ("one answer", [point.one for point in points], RATE),
        ):
            axes.plot(tokens, values, marker="o", markersize=4, color=colour, label=name)
        axes.set_xscale("log", base=2)
        axes.set_xlabel("tokens a prompt")
        axes.set_ylabel("reward")
        axes.legend()
        with atomic_file(path) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})
