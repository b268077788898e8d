"""The end of a demo: what the base model and the fine-tuned one are worth, beside each other, every number counted."""

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
from pellucid.evaluation.first_model import BASE, QUIZ, TUNED, Demo, opening
from pellucid.evaluation.world import Reply, Share, ask_as_quiz, ask_in_chat, examine, knowledge
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


class Line(BaseModel):
    """One measure of both models, as it is shown."""

    model_config = ConfigDict(frozen=True)

    measure: str
    base: str
    tuned: str
    important: bool = False


class Exchange(BaseModel):
    """A question to both models. truth: the world's answer, None where it has none. right: whether each was right, None
    where nobody can say."""

    model_config = ConfigDict(frozen=True)

    question: str
    about: str
    truth: str | None
    base: str
    base_right: bool | None
    tuned: str
    tuned_right: bool | None


class Results(BaseModel):
    """What the examination gave."""

    model_config = ConfigDict(frozen=True)

    table: tuple[Line, ...]
    how: str  # each of the two was asked
    exchanges: tuple[Exchange, ...]

    def save(self, folder: Path) -> None:
        with atomic_file(folder / RESULTS) as temporary:
            temporary.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read_results(folder: Path) -> Results | None:
    """The results of a demo that has come to its end."""
    file = folder / RESULTS
    return Results.model_validate_json(file.read_text(encoding="utf-8")) if file.is_file() else None


def open_both(folder: Path) -> tuple[tuple[Decoder, Tokenizer], tuple[Decoder, Tokenizer]]:
    """The base model and the fine-tuned one."""
    return load(str(folder / BASE), dtype="float32"), load(str(folder / TUNED), dtype="float32")


def examined(demo: Demo, tell: Callable[[str], None]) -> Results:
    """The examination of a demo whose two models are there; `tell` is told what is done, a line each."""
    if demo.source is None:
        return examine_world(demo.folder, demo.world, tell)
    return examine_own(demo.folder, list(itertools.islice(demo.held_out(), ASKED)), tell)


def examine_world(folder: Path, world: TinyWorld, tell: Callable[[str], None]) -> Results:
    """Both models of the demo in `folder`, asked about the world that they learnt from."""
    base, tuned = open_both(folder)
    tell("asking the base model")
    before = examine(world, ask_as_quiz(*base))
    tell("asking the fine-tuned model")
    after = examine(world, ask_in_chat(*tuned))
    return Results(
        table=(bits_per_byte(folder, base, tuned), *knowledge_lines(before, after)),
        how="The texts ask about everybody, the conversations about half of the people: what is right about the other "
        "half was carried over, and the questions without an answer are about that half. The base model goes on with "
        f"{QUIZ.format('...')!r}, a form that its texts have; the fine-tuned one is asked through its chat template. "
        "Both take the most likely token at every step.",
        exchanges=tuple(chosen(before, after)),
    )


def bits_per_byte(folder: Path, base: tuple[Decoder, Tokenizer], tuned: tuple[Decoder, Tokenizer]) -> Line:
    """On text that neither was trained on."""
    rows = Stream(
        open_shards(folder / BASE / "data" / "validation"), base[0].config.max_positions // 2, 0, shuffle=False
    )
    seen = [evaluate(model, tokenizer, rows, ROWS).bits_per_byte for model, tokenizer in (base, tuned)]
    shown = ["-" if bits is None else f"{bits:.3f}" for bits in seen]
    return Line(measure="bits per byte on held-out text", base=shown[0], tuned=shown[1])


def knowledge_lines(before: Sequence[Reply], after: Sequence[Reply]) -> Iterator[Line]:
    """The lines of the table on right, refused and invented answers."""
    base, tuned = knowledge(before), knowledge(after)
    train, held_out = SPLITS
    people = {train: "people of the conversations", held_out: "people of whom no conversation was"}
    for split in SPLITS:
        yield Line(
            measure=f"right on {people[split]}",
            base=str(base.right[split]),
            tuned=str(tuned.right[split]),
            important=split == held_out,
        )
    yield Line(
        measure=f"refuses although it is told: {people[held_out]}",
        base=str(base.refused[held_out]),
        tuned=str(tuned.refused[held_out]),
    )
    yield Line(
        measure="invents an answer where there is none",
        base=str(base.invented[ALL]),
        tuned=str(tuned.invented[ALL]),
        important=True,
    )
    for sort, what in SORTS.items():
        if sort in base.invented:
            yield Line(measure=f"  {what}", base=str(base.invented[sort]), tuned=str(tuned.invented[sort]))


def chosen(before: Sequence[Reply], after: Sequence[Reply]) -> Iterator[Exchange]:
    """A short chat about people who are held out: the first question on each of some relations, then of each sort.

    They are the first ones there are, whatever was answered.
    """
    relations = ["home", "trade", "pet", "born"]
    seen: set[str] = set()
    pairs = [pair for pair in zip(before, after, strict=True) if pair[0].people == SPLITS[1]]
    told = [pair for pair in pairs if pair[0].question.sort == "told" and pair[0].question.relation in relations]
    unanswerable = [pair for pair in pairs if pair[0].question.sort != "told"]
    for first, second in [*told, *unanswerable]:
        question = first.question
        kind = question.relation if question.sort == "told" else question.sort
        if kind in seen:
            continue
        seen.add(kind)
        yield Exchange(
            question=question.text,
            about="told in the texts" if question.sort == "told" else SORTS[question.sort],
            truth=question.answer,
            base=first.text,
            base_right=first.right,
            tuned=second.text,
            tuned_right=second.right,
        )


def examine_own(folder: Path, passages: Sequence[str], tell: Callable[[str], None]) -> Results:
    """Both models of the demo in `folder`, on a text of whose facts nothing is known: they go on with `passages`."""
    base, tuned = open_both(folder)
    tell("asking both models to go on")
    beginnings = [opening(passage) for passage in passages]
    questions = [question_of(text, tuned[1]) for text in beginnings]
    answers = [ask(model, tuned[1], questions, LIMIT) for model in (base[0], tuned[0])]
    end = turn_end(tuned[1])
    stopped = [str(Share(sum(one.finish_detail == end for one in each), len(each))) for each in answers]
    return Results(
        table=(
            bits_per_byte(folder, base, tuned),
            Line(measure=f"stops by itself within {LIMIT} tokens", base=stopped[0], tuned=stopped[1], important=True),
        ),
        how="Both are given the first words of held-out passages as a user's message, in the chat template, and take "
        "the most likely token at every step.",
        exchanges=tuple(
            Exchange(
                question=text,
                about="the beginning of a passage that neither has read",
                truth=None,
                base=one.text,
                base_right=None,
                tuned=other.text,
                tuned_right=None,
            )
            for text, one, other in itertools.islice(zip(beginnings, *answers, strict=True), SHOWN)
        ),
    )
