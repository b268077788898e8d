"""What a reward model does on pairs that it has not learnt from: how often it is right, whether it is as sure as it is
right, and whether it pays for length.

P pairs, A answers.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from pellucid.alignment.before_after import Change, quoted
from pellucid.alignment.reward_picture import draw
from pellucid.alignment.win_rate import wilson
from pellucid.checkpoints.atomic import atomic_file
from pellucid.data.rankings import Ranking, Rankings
from pellucid.models.classifier import Classifier
from pellucid.tokenizer.tokenizer import Tokenizer

Floats = npt.NDArray[np.float64]
PICTURE = "reward.svg"
TOGETHER = 4  # rows at a time


@dataclass(frozen=True, slots=True)
class Scored:
    """Rewards of held-out answers. reward, length: (A,), length in tokens; pairs: (P, 2), better and worse."""

    reward: Floats
    length: Floats
    pairs: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Bin:
    """Pairs of which the model said, with a probability from `low` to `high`, which answer is better.

    said: the mean of these probabilities. right: how often it was so, 0 to 1, with its 95 % interval, as if all pairs
    were apart: where prompts have several pairs it is too narrow.
    """

    low: float
    high: float
    pairs: int
    said: float
    right: float
    interval: tuple[float, float]


@dataclass(frozen=True, slots=True)
class LengthBias:
    """Whether longer answers get more. correlation: Pearson's, of reward and length over all answers; within: of the
    differences of both over pairs, so that prompts play no part. longer_is_better: how often the longer answer is the
    preferred one in the data, and longer_gets_more: how often it gets the higher reward (pairs of one length apart).
    right_if_longer, right_if_shorter: the accuracy where the better answer is the longer and the shorter one.
    None: there is nothing to tell it from.
    """

    correlation: float | None
    within: float | None
    longer_is_better: float | None
    longer_gets_more: float | None
    right_if_longer: float | None
    right_if_shorter: float | None


@dataclass(frozen=True, slots=True)
class ShownAnswer:
    """An answer, its reward, and in how many of its comparisons the data prefer it."""

    text: str
    reward: float
    preferred: int
    compared: int


@dataclass(frozen=True, slots=True)
class Shown:
    """A held-out prompt and its answers, the one with the highest reward first."""

    prompt: str
    answers: tuple[ShownAnswer, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """accuracy: how often the better answer gets the higher reward (equal ones count half), with its 95 % interval,
    which counts `prompts`: the pairs of one prompt share answers, and tell less than so many apart.

    loss: the mean of -log sigmoid(r_w - r_l), in nats (ln 2 by guessing). mean, spread: of the rewards. bins: the
    reliability table. calibration_error: the mean of |said - right| over pairs, by bins (Guo et al. 2017, equation 3).
    changes: how far training moved the weights, by part.
    """

    pairs: int
    prompts: int
    accuracy: float
    interval: tuple[float, float]
    loss: float
    mean: float
    spread: float
    bins: tuple[Bin, ...]
    calibration_error: float
    length: LengthBias
    shown: tuple[Shown, ...]
    changes: tuple[Change, ...] = ()


def examine(
    model: Classifier, tokenizer: Tokenizer, data: Rankings, shown: int = 3, bins: int = 5
) -> tuple[Report, Scored]:
    """Scores all answers of `data` and says how good the scores are."""
    scored = score(model, data)
    better, worse = scored.reward[scored.pairs].T
    gap = better - worse
    right = (gap > 0) + (gap == 0) / 2
    table = reliability(gap, bins)
    count = len(gap)
    report = Report(
        pairs=count,
        prompts=len(data.rankings),
        accuracy=float(right.mean()),
        interval=wilson(float(right.mean()), len(data.rankings)),
        loss=float(np.logaddexp(0, -gap).mean()),  # log(1 + e^-d) = -log sigmoid(d)
        mean=float(scored.reward.mean()),
        spread=float(scored.reward.std()),
        bins=tuple(table),
        calibration_error=sum(one.pairs * abs(one.said - one.right) for one in table) / count,
        length=length_bias(scored),
        shown=tuple(_shown(model, tokenizer, data, ranking) for ranking in data.rankings[:shown]),
    )
    return report, scored


@torch.no_grad()
def score(model: Classifier, data: Rankings) -> Scored:
    """The reward of every answer."""
    was = model.training
    model.eval()
    rewards: list[float] = []
    lengths: list[int] = []
    pairs: list[tuple[int, int]] = []
    for start in range(0, len(data), TOGETHER):
        examples = data.read(range(start, min(start + TOGETHER, len(data)))).to(model.device)
        with torch.compiler.set_stance("force_eager"):  # shapes that training has not
            scores = model.scores(examples.tokens, examples.batch)[examples.ends[:, 0], examples.ends[:, 1]]
        pairs += [(len(rewards) + i, len(rewards) + j) for i, j in examples.pairs.tolist()]
        rewards += scores.float().tolist()
        lengths += examples.lengths.tolist()
    model.train(was)
    return Scored(np.array(rewards), np.array(lengths, np.float64), np.array(pairs, np.int64).reshape(-1, 2))


def reliability(gap: Floats, bins: int) -> list[Bin]:
    """The pairs by how sure the model is: p = sigmoid(|r_w - r_l|), from 1/2 to 1. gap: (P,), r_w - r_l."""
    said = 1 / (1 + np.exp(-np.abs(gap)))
    right = (gap > 0) + (gap == 0) / 2
    edges = np.linspace(0.5, 1.0, bins + 1)
    place = np.minimum(np.searchsorted(edges, said, "right") - 1, bins - 1)
    table = []
    for number in range(bins):
        here = place == number
        if not here.any():
            continue
        hits, count = float(right[here].mean()), int(here.sum())
        table.append(Bin(edges[number], edges[number + 1], count, float(said[here].mean()), hits, wilson(hits, count)))
    return table


def length_bias(scored: Scored) -> LengthBias:
    """See `LengthBias`."""
    reward, length = scored.reward[scored.pairs], scored.length[scored.pairs]  # (P, 2)
    gap, longer = reward[:, 0] - reward[:, 1], length[:, 0] - length[:, 1]
    unequal = longer != 0
    more = np.sign(gap) * np.sign(longer)
    return LengthBias(
        correlation=correlation(scored.reward, scored.length),
        within=correlation(gap, longer),
        longer_is_better=mean(longer[unequal] > 0),
        longer_gets_more=mean((more[unequal] + 1) / 2),
        right_if_longer=mean((np.sign(gap[longer > 0]) + 1) / 2),
        right_if_shorter=mean((np.sign(gap[longer < 0]) + 1) / 2),
    )


def mean(values: npt.NDArray[np.generic]) -> float | None:
    return float(values.astype(np.float64).mean()) if len(values) else None


def correlation(x: Floats, y: Floats) -> float | None:
    """Pearson's; None where one of them does not vary."""
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x * x).sum() * (y * y).sum()))
    return float((x * y).sum()) / scale if scale > 0 else None


@torch.no_grad()
def _shown(model: Classifier, tokenizer: Tokenizer, data: Rankings, ranking: Ranking) -> Shown:
    prompt, answers = data.texts(ranking)
    found = []
    for number, ids in enumerate(answers):
        whole = torch.from_numpy(np.concatenate([prompt, ids]))[None].to(model.device)
        with torch.compiler.set_stance("force_eager"):
            reward = model.scores(whole)[0, -1].item()
        preferred = sum(better == number for better, _ in ranking.pairs)
        compared = sum(number in pair for pair in ranking.pairs)
        found.append(ShownAnswer(tokenizer.decode(ids.tolist(), skip_special=True), reward, preferred, compared))
    found.sort(key=lambda one: -one.reward)
    return Shown(tokenizer.decode(prompt.tolist()), tuple(found))


def write_report(report: Report, scored: Scored, folder: Path, base: str) -> None:
    """`report.json`, `report.md` and, where Matplotlib is there, `reward.svg`. `PellucidError`: the disk refuses."""
    content = json.dumps(asdict(report), indent=2, ensure_ascii=False) + "\n"
    files = {"report.json": content, "report.md": as_markdown(report, str(folder), base)}
    if find_spec("matplotlib") is None:
        warnings.warn(
            f"Matplotlib is not installed, so {folder} gets no {PICTURE} (to have it: pip install 'pellucid[plot]')",
            stacklevel=2,
        )
    else:
        bins = [(one.said, one.right, one.interval) for one in report.bins]
        files[PICTURE] = draw(bins, scored.length, scored.reward, folder.name)
    for name, text in files.items():
        with atomic_file(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def summary(report: Report) -> list[str]:
    """What there is to say, a sentence each."""
    low, high = report.interval
    bias = report.length
    lines = [
        f"Of {report.pairs:,} held-out pairs of {report.prompts:,} prompts, the better answer gets the higher reward "
        f"in {report.accuracy:.1%} "
        f"(95 % confidence interval {low:.1%} to {high:.1%}); loss {report.loss:.3f}, by guessing 0.693.",
        f"Rewards: mean {report.mean:.2f}, standard deviation {report.spread:.2f}.",
        f"Calibration error {report.calibration_error:.1%}: how far what it says is from how often it is right.",
    ]
    if bias.correlation is not None and bias.longer_is_better is not None and bias.longer_gets_more is not None:
        within = "" if bias.within is None else f" ({bias.within:+.2f} within pairs)"
        lines.append(
            f"Length: the correlation of reward and length is {bias.correlation:+.2f}{within}; the longer answer gets "
            f"the higher reward in {bias.longer_gets_more:.0%} of the pairs, and is the better one in "
            f"{bias.longer_is_better:.0%}."
        )
    if bias.right_if_longer is not None and bias.right_if_shorter is not None:
        lines.append(
            f"It is right in {bias.right_if_longer:.0%} of the pairs whose better answer is the longer one, and in "
            f"{bias.right_if_shorter:.0%} of those whose better answer is the shorter one."
        )
    return lines


def as_markdown(report: Report, name: str, base: str) -> str:
    """A report to read."""
    lines = [f"# {name}, a reward model from {base}", ""]
    for sentence in summary(report):
        lines += [sentence, ""]
    lines += [
        "| it says | pairs | it said, on average | it was right | 95 % interval |",
        "|---|---:|---:|---:|---|",
        *(
            f"| {one.low:.0%} to {one.high:.0%} | {one.pairs:,} | {one.said:.1%} | {one.right:.1%} | "
            f"{one.interval[0]:.0%} to {one.interval[1]:.0%} |"
            for one in report.bins
        ),
    ]
    lines += [
        "",
        "| part | parameters | change, relative to its norm |",
        "|---|---:|---:|",
        *(f"| {one.part} | {one.parameters:,} | {one.relative:.2%} |" for one in report.changes),
    ]
    for number, shown in enumerate(report.shown, 1):
        lines += ["", f"## Prompt {number}", "", quoted(shown.prompt)]
        for one in shown.answers:
            told = f"Reward {one.reward:.2f}, preferred in {one.preferred} of {one.compared} comparisons:"
            lines += ["", told, "", quoted(one.text)]
    return "\n".join(lines) + "\n"
