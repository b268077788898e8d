"""What fine-tuning did to a model: its answers before and after, how far its weights moved, and whether it stops.

Promise A5: the report shows prompts before and after and the size of the change. Promise D5: the model stops.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pellucid.checkpoints.atomic import atomic_file
from pellucid.checkpoints.describe import PARTS, part_of
from pellucid.data.documents import with_ends
from pellucid.data.examples import Rows
from pellucid.errors import InputError
from pellucid.inference.engine import Engine
from pellucid.inference.generate import Completion
from pellucid.inference.output import answer_all
from pellucid.inference.params import SamplingParams
from pellucid.models.decoder import Decoder
from pellucid.training.evaluate import evaluate

if TYPE_CHECKING:
    from pellucid.tokenizer.tokenizer import Tokenizer

TOGETHER = 8  # questions at a time


@dataclass(frozen=True, slots=True)
class Question:
    """A conversation up to the assistant's turn. ids: as the template writes it. expected: what the data answers."""

    text: str
    ids: tuple[int, ...]
    expected: str | None = None


@dataclass(frozen=True, slots=True)
class Answered:
    """A question and the answers of the two models, each the most likely token at every step."""

    question: str
    expected: str | None
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Change:
    """How far the parameters of a part moved. relative: ||w - w0|| / ||w0||, Euclidean norms over all of them."""

    part: str
    parameters: int
    relative: float


@dataclass(frozen=True, slots=True)
class Stops:
    """How many of `asked` answers ended with the token that ends a turn, within `max_tokens` tokens."""

    asked: int
    max_tokens: int
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class Losses:
    """The mean loss on the validation data, in nats a token that the assistant says."""

    before: float
    after: float


@dataclass(frozen=True, slots=True)
class Measure:
    """What else a method measures of both models. before: None where it says nothing of the first one."""

    name: str
    before: float | None
    after: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """The model before and after. losses: None where there is no validation data."""

    answers: tuple[Answered, ...]
    changes: tuple[Change, ...]  # by part; the last one is the whole model
    stops: Stops
    losses: Losses | None
    measures: tuple[Measure, ...] = ()


def compare(
    before: Decoder,
    after: Decoder,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    validation: Rows | None = None,
    *,
    shown: int = 3,
    max_tokens: int = 64,
    rows: int = 64,
) -> Comparison:
    """Asks both models all questions, and keeps the first `shown` answers.

    before, after: models of one config, for this tokenizer. rows: so many of `validation` at most are looked at.
    Errors as `Engine.add` raises them.
    """
    losses = [] if validation is None else [evaluate(m, tokenizer, validation, rows).loss for m in (before, after)]
    end = turn_end(tokenizer)
    earlier, later = (ask(model, tokenizer, questions, max_tokens) for model in (before, after))
    return Comparison(
        tuple(
            Answered(question.text, question.expected, one.text, other.text)
            for question, one, other in zip(questions[:shown], earlier, later, strict=False)
        ),
        tuple(changes(before, after)),
        Stops(len(questions), max_tokens, *(sum(a.finish_detail == end for a in each) for each in (earlier, later))),
        Losses(*losses) if losses else None,
    )


def turn_end(tokenizer: Tokenizer) -> int:
    """The token with which a conversation that is learnt from ends the assistant's turn."""
    probe = tokenizer.apply_chat_template([{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}])
    ids, said = with_ends(probe.ids, probe.assistant_mask, tokenizer.stop_ids)
    return next(token for token, own in zip(reversed(ids), reversed(said), strict=True) if own)


def question_of(text: str, tokenizer: Tokenizer) -> Question:
    """A user's message as the beginning of a conversation."""
    chat = tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)
    return Question(chat.text, tuple(chat.ids))


def own_questions(
    asked: Sequence[str], samples: Sequence[str], tokenizer: Tokenizer, context: int
) -> Iterator[Question]:
    """A recipe's own questions. Raises `InputError` for one of them, or of its prompts to sample for, that leaves no
    room for an answer."""
    for number, text in enumerate((*asked, *samples)):
        question = question_of(text, tokenizer)
        if len(question.ids) >= context:
            raise InputError(
                f"the prompt {text[:40]!r} has {len(question.ids)} tokens and the context holds {context}, the answer "
                "included: make it shorter"
            )
        if number < len(asked):
            yield question


def answer(model: Decoder, tokenizer: Tokenizer, texts: Sequence[str], max_tokens: int) -> list[str]:
    """What a model in training answers to each of these messages of a user."""
    questions = [question_of(text, tokenizer) for text in texts]
    return [completion.text for completion in ask(model, tokenizer, questions, max_tokens, native=False)]


def ask(
    model: Decoder, tokenizer: Tokenizer, questions: Sequence[Question], max_tokens: int, *, native: bool = True
) -> list[Completion]:
    """The greedy answer to each question. native: False leaves the parameters as they are, for a model in training."""
    engine = Engine(model, tokenizer, max_sequences=TOGETHER, native=native)
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens)
    return answer_all(engine, [question.ids for question in questions], params, in_chat=True)


@torch.no_grad()
def changes(before: Decoder, after: Decoder) -> Iterator[Change]:
    """The change of each part that the model has, then of the whole."""
    old = before.weights()
    sums: dict[str, tuple[int, float, float]] = {}  # part -> parameters, ||w - w0||^2, ||w0||^2
    for name, weight in after.weights().items():
        moved, was = (float(x.double().square().sum()) for x in (weight.float() - old[name].float(), old[name]))
        for part in (part_of(name.split(".")), "all"):
            count, far, long = sums.get(part, (0, 0.0, 0.0))
            sums[part] = (count + weight.numel(), far + moved, long + was)
    for part in (*PARTS, "all"):
        if part in sums:
            count, far, long = sums[part]
            yield Change(part, count, math.sqrt(far / long) if long else math.inf)


def write_report(comparison: Comparison, folder: Path, base: str) -> None:
    """`report.json` and `report.md` in `folder`. Raises `PellucidError` when the disk refuses."""
    content = json.dumps(asdict(comparison), indent=2, ensure_ascii=False) + "\n"
    for name, text in (("report.json", content), ("report.md", as_markdown(comparison, str(folder), base))):
        with atomic_file(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def as_markdown(comparison: Comparison, name: str, base: str) -> str:
    """A report to read."""
    stops, losses = comparison.stops, comparison.losses
    lines = [
        f"# {name}, fine-tuned from {base}",
        "",
        f"Of {stops.asked} answers, {stops.after} ended with the turn's end token within {stops.max_tokens} tokens "
        f"({stops.before} before).",
        *(
            []
            if losses is None
            else ["", f"Loss on the validation data: {losses.before:.3f} before, {losses.after:.3f} after."]
        ),
        *(line for one in comparison.measures for line in ("", f"{said_of(one)}.")),
        "",
        "| part | parameters | change, relative to its norm |",
        "|---|---:|---:|",
        *(f"| {one.part} | {one.parameters:,} | {one.relative:.2%} |" for one in comparison.changes),
    ]
    for number, answer in enumerate(comparison.answers, 1):
        lines += ["", f"## Prompt {number}", "", quoted(answer.question)]
        expected = [("In the data", answer.expected)] if answer.expected is not None else []
        for who, text in [*expected, ("Before", answer.before), ("After", answer.after)]:
            lines += ["", f"{who}:", "", quoted(text)]
    return "\n".join(lines) + "\n"


def said_of(one: Measure) -> str:
    """A measure of both models, in words."""
    before = "" if one.before is None else f"{one.before:.3f} before, "
    return f"{one.name}: {before}{one.after:.3f} after"


def quoted(text: str) -> str:
    """As an indented block, in which nothing means anything to Markdown."""
    return "\n".join(f"    {line}" for line in text.split("\n"))
