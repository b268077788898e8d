"""The end of a demo: what its models are worth, beside each other, every number counted."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from pellucid.alignment.before_after import ask, question_of, turn_end
from pellucid.checkpoints.atomic import atomic_file
from pellucid.checkpoints.load import load
from pellucid.data.packing import Stream
from pellucid.data.shards import open_shards
from pellucid.data.tinyworld import SPLITS, TinyWorld
from pellucid.evaluation.first_model import BASE, PREFERRED, QUIZ, TUNED, Demo, opening
from pellucid.evaluation.world import Reply, Share, ask_as_quiz, ask_in_chat, examine, knowledge, right_by_chance
from pellucid.models.decoder import Decoder
from pellucid.tokenizer.tokenizer import Tokenizer
from pellucid.training.evaluate import evaluate

RESULTS = "results.json"
ASKED = 24  # beginnings of a text of one's own
LIMIT, SHOWN = 96, 4  # tokens of a continuation; continuations that are shown
ROWS = 64  # of held-out text, for bits per byte
SORTS = {  # of questions without an answer: what they ask for
    "left open": "what the world leaves open",
    "unheard of": "what is told of nobody",
    "nobody": "people who do not exist",
    "too late": "what happened after the texts",
}
ALL = "all"
MODELS = {BASE: "base model", TUNED: "fine-tuned", PREFERRED: "and preferences"}
Opened = tuple[Decoder, Tokenizer]


class Line(BaseModel):
    """One measure of all models, as it is shown."""

    model_config = ConfigDict(frozen=True)

    measure: str
    values: tuple[str, ...]
    important: bool = False


class Said(BaseModel):
    """A model's answer. right: None where nobody can say."""

    model_config = ConfigDict(frozen=True)

    text: str
    right: bool | None = None


class Exchange(BaseModel):
    """A question to all models. truth: the world's answer, None where it has none."""

    model_config = ConfigDict(frozen=True)

    question: str
    about: str
    truth: str | None
    answers: tuple[Said, ...]


class Results(BaseModel):
    """What the examination gave. models: keys of `MODELS`, in the order of the values and answers."""

    model_config = ConfigDict(frozen=True)

    models: tuple[str, ...]
    table: tuple[Line, ...]
    how: str  # each of them was asked
    exchanges: tuple[Exchange, ...]

    def save(self, folder: Path) -> None:
        with atomic_file(folder / RESULTS) as temporary:
            temporary.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read_results(folder: Path) -> Results | None:
    """The results of a demo that has come to its end."""
    file = folder / RESULTS
    return Results.model_validate_json(file.read_text(encoding="utf-8")) if file.is_file() else None


def open_models(folder: Path, names: Sequence[str]) -> list[Opened]:
    """The models of a demo, by the folders of their runs."""
    return [load(folder / name, dtype="float32") for name in names]


def examined(demo: Demo, tell: Callable[[str], None]) -> Results:
    """The examination of a demo whose models are there; `tell` is told what is done, a line each."""
    if demo.source is None:
        return examine_world(demo.folder, demo.world, tell)
    return examine_own(demo.folder, list(itertools.islice(demo.held_out(), ASKED)), tell)


def examine_world(folder: Path, world: TinyWorld, tell: Callable[[str], None]) -> Results:
    """The models of the demo in `folder`, asked about the world that they learnt from."""
    names = tuple(name for name in MODELS if (folder / name).is_dir())
    models = open_models(folder, names)
    replies: list[Sequence[Reply]] = []
    for name, (model, tokenizer) in zip(names, models, strict=True):
        tell(f"asking the model of {name}")
        replies.append(examine(world, (ask_as_quiz if name == BASE else ask_in_chat)(model, tokenizer)))
    return Results(
        models=names,
        table=(bits_per_byte(folder, models), *knowledge_lines(replies), by_chance(world, names, models)),
        how="The texts ask about everybody, the conversations and the preferences about half of the people: what is "
        "right about the other half was carried over, and the questions without an answer are about that half. The "
        f"base model goes on with {QUIZ.format('...')!r}, a form that its texts have; the others are asked through "
        "their chat template. All take the most likely token at every step, but for the last line: there answers are "
        "drawn at temperature 1, some to each question about that half, those without an answer too.",
        exchanges=tuple(chosen(replies)),
    )


def bits_per_byte(folder: Path, models: Sequence[Opened]) -> Line:
    """On text that none was trained on."""
    context = models[0][0].config.max_positions // 2
    rows = Stream(open_shards(folder / BASE / "data" / "validation"), context, 0, shuffle=False)
    seen = [evaluate(model, tokenizer, rows, ROWS).bits_per_byte for model, tokenizer in models]
    shown = tuple("-" if bits is None else f"{bits:.3f}" for bits in seen)
    return Line(measure="bits per byte on held-out text", values=shown)


def knowledge_lines(replies: Sequence[Sequence[Reply]]) -> Iterator[Line]:
    """The lines of the table on right, refused and invented answers. replies: of each model."""
    known = [knowledge(of_one) for of_one in replies]
    train, held_out = SPLITS
    people = {train: "people of the conversations", held_out: "people of whom no conversation was"}
    for split in SPLITS:
        yield Line(
            measure=f"right on {people[split]}",
            values=tuple(str(one.right[split]) for one in known),
            important=split == held_out,
        )
    yield Line(
        measure=f"refuses although it is told: {people[held_out]}",
        values=tuple(str(one.refused[held_out]) for one in known),
    )
    yield Line(
        measure="invents an answer where there is none",
        values=tuple(str(one.invented[ALL]) for one in known),
        important=True,
    )
    for sort, what in SORTS.items():
        if sort in known[0].invented:
            yield Line(measure=f"  {what}", values=tuple(str(one.invented[sort]) for one in known))


def by_chance(world: TinyWorld, names: Sequence[str], models: Sequence[Opened]) -> Line:
    """How often the models are right that answer in chat, where answers are drawn."""
    shares = (
        "-" if name == BASE else str(right_by_chance(world, *each)) for name, each in zip(names, models, strict=True)
    )
    return Line(measure="right where answers are drawn, of both kinds", values=tuple(shares), important=True)


def chosen(replies: Sequence[Sequence[Reply]]) -> Iterator[Exchange]:
    """A short chat about people who are held out: the first question on each of some relations, then of each sort.

    They are the first ones there are, whatever was answered. replies: of each model, to the same questions.
    """
    relations = ["home", "trade", "pet", "born"]
    seen: set[str] = set()
    together = [several for several in zip(*replies, strict=True) if several[0].people == SPLITS[1]]
    told = [each for each in together if each[0].question.sort == "told" and each[0].question.relation in relations]
    unanswerable = [each for each in together if each[0].question.sort != "told"]
    for each in [*told, *unanswerable]:
        question = each[0].question
        kind = question.relation if question.sort == "told" else question.sort
        if kind in seen:
            continue
        seen.add(kind)
        yield Exchange(
            question=question.text,
            about="told in the texts" if question.sort == "told" else SORTS[question.sort],
            truth=question.answer,
            answers=tuple(Said(text=reply.text, right=reply.right) for reply in each),
        )


def examine_own(folder: Path, passages: Sequence[str], tell: Callable[[str], None]) -> Results:
    """The models of the demo in `folder`, on a text of whose facts nothing is known: they go on with `passages`."""
    names = (BASE, TUNED)
    models = open_models(folder, names)
    tokenizer = models[-1][1]
    tell("asking both models to go on")
    beginnings = [opening(passage) for passage in passages]
    questions = [question_of(text, tokenizer) for text in beginnings]
    answers = [ask(model, tokenizer, questions, LIMIT) for model, _ in models]
    end = turn_end(tokenizer)
    stopped = tuple(str(Share(sum(one.finish_detail == end for one in each), len(each))) for each in answers)
    return Results(
        models=names,
        table=(
            bits_per_byte(folder, models),
            Line(measure=f"stops by itself within {LIMIT} tokens", values=stopped, important=True),
        ),
        how="Both are given the first words of held-out passages as a user's message, in the chat template, and take "
        "the most likely token at every step.",
        exchanges=tuple(
            Exchange(
                question=text,
                about="the beginning of a passage that neither has read",
                truth=None,
                answers=tuple(Said(text=one.text) for one in each),
            )
            for text, *each in itertools.islice(zip(beginnings, *answers, strict=True), SHOWN)
        ),
    )
