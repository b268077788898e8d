"""The whole way in small: text, tokenizer, a model that continues text, a model that answers, and its examination.

A fact is learnt so that it can be asked for when it is told often, in many words and orders, and when the texts ask
questions about some of the people (Allen-Zhu & Li 2023, "Physics of Language Models: Part 3.1", sections 3 and 4).
"""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pellucid.alignment.recipe import SFTRecipe
from pellucid.checkpoints.atomic import atomic_file, atomic_folder
from pellucid.data.sources import read_records
from pellucid.data.tinyworld import TinyWorld
from pellucid.errors import InputError
from pellucid.training.recipe import PretrainRecipe, parse_recipe

TEXT, BASE, TUNED, PREFERRED = "text", "pretrain", "sft", "dpo"  # folders of a demo's own
TRAIN, HELD_OUT, CONVERSATIONS = "train.jsonl", "held-out.jsonl", "conversations.jsonl"
BEGUN = "demo.json"  # what the demo was begun with
MEASURED = 2  # tellings of each fact in the texts to be measured on
ROUNDS = 2  # of conversations
SHORTEST = 20_000  # characters of a text from which writing can be learnt at all, if poorly
# The world's texts have questions in this form, among others, so a model that was never taught to chat knows it.
QUIZ = "Question: {}\nAnswer:"
PASSAGE = 600  # characters of a passage, about


@dataclass(frozen=True, slots=True)
class Size:
    """How large everything is. context: tokens a row; batch: rows a step; the learning rates are the highest ones, of
    the blocks' matrices (Muon's), of all else, of fine-tuning, and of learning from preferences."""

    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    context: int
    batch: int
    steps: int
    matrix_lr: float
    lr: float
    sft_steps: int
    sft_lr: float
    people: int = 0
    tellings: int = 0
    dpo_steps: int = 0
    dpo_lr: float = 2e-5


WORLD = Size(
    vocab_size=2048, hidden_size=128, layers=4, heads=4, context=256, batch=8, steps=1400,
    matrix_lr=3e-3, lr=5e-3, sft_steps=240, sft_lr=5e-4, people=40, tellings=300,
    dpo_steps=60,
)  # fmt: skip


def size_for(characters: int) -> Size:
    """What suits a text of so many characters: about ten readings of a short one, part of a long one."""
    vocab_size = 512 if characters < 100_000 else 1024 if characters < 500_000 else 2048
    seen = min(max(10 * characters // 4, 400_000), 2_500_000)  # tokens; one is about four characters
    return replace(
        WORLD, vocab_size=vocab_size, steps=seen // (WORLD.batch * WORLD.context), people=0, tellings=0, dpo_steps=0
    )


@dataclass(frozen=True, slots=True)
class Demo:
    """A demo in `folder`. source: the user's own text; None: a world of `size.people` people, made from `seed`."""

    folder: Path
    seed: int
    size: Size
    source: str | None = None

    @property
    def world(self) -> TinyWorld:
        return TinyWorld(self.seed, self.size.people)

    def begin(self) -> None:
        """Makes the folder, or takes up what is there. Raises `InputError` where that is of another demo."""
        file = self.folder / BEGUN
        now = {"text": self.source, "seed": self.seed, **asdict(self.size)}
        if not file.is_file():
            if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
                raise InputError(f"{self.folder} is there, and no demo: choose another folder with --run")
            self.folder.mkdir(parents=True, exist_ok=True)
            with atomic_file(file) as temporary:
                temporary.write_text(json.dumps(now, indent=2) + "\n", encoding="utf-8")
        elif (was := json.loads(file.read_text(encoding="utf-8"))) != now:
            field = next(name for name in now if now[name] != was.get(name))
            raise InputError(
                f"{self.folder} was begun with another {field} ({was.get(field)} -> {now[field]}): choose another "
                "folder with --run"
            )

    def write_text(self) -> None:
        """The texts and conversations to learn from, and the texts to be measured on; those that are there stay."""
        if (self.folder / TEXT).is_dir():
            return
        if self.source is None:
            write_world(self.folder / TEXT, self.world, self.size)
        else:
            write_own(self.folder / TEXT, passages_in(self.source))

    def excerpt(self, characters: int) -> str:
        """The beginning of what is learnt from."""
        shown = "\n\n".join(itertools.islice(read_texts(self.folder / TEXT / TRAIN), 8))
        return shown if len(shown) <= characters else shown[: shown.rfind(" ", 0, characters)] + " ..."

    def counts(self) -> dict[str, int]:
        """Documents and characters to learn from, and conversations."""
        texts = [len(text) for text in read_texts(self.folder / TEXT / TRAIN)]
        with (self.folder / TEXT / CONVERSATIONS).open(encoding="utf-8") as file:
            return {"documents": len(texts), "characters": sum(texts), "conversations": sum(1 for _ in file)}

    def prompts(self) -> tuple[str, ...]:
        """Beginnings that the base model goes on with while it learns."""
        if self.source is None:
            person = next(one for one in self.world.people if one.held_out)
            return (f"{person.name} lives in", QUIZ.format(f"Where does {person.name} live?"))
        return tuple(opening(text) for text in itertools.islice(self.held_out(), 2))

    def held_out(self) -> Iterator[str]:
        """The texts to be measured on."""
        return read_texts(self.folder / TEXT / HELD_OUT)


def read_texts(file: Path) -> Iterator[str]:
    with file.open(encoding="utf-8") as lines:
        yield from (json.loads(line)["text"] for line in lines)


def write_world(folder: Path, world: TinyWorld, size: Size) -> None:
    """The world as texts to learn from, texts of the same facts in other words to be measured on, and conversations."""
    conversations = itertools.chain.from_iterable(world.conversations(seed) for seed in range(ROUNDS))
    _write_folder(folder, told(world, 0, size.tellings), told(world, 1, MEASURED), conversations)


def told(world: TinyWorld, seed: int, tellings: int) -> Iterator[dict[str, str]]:
    """The texts of a world, which ask about everybody; the conversations do not."""
    for document in world.documents(seed, tellings, ask_all=True):
        yield {"text": document.text, "kind": document.kind}


def passages_in(source: str) -> list[str]:
    """The passages of a text. Raises `InputError` for one that is too short, and as `read_records` does."""
    texts = (record.content for record in read_records([source], wanted="text", counts=Counter()))
    passages = list(dict.fromkeys(passages_of(texts)))  # one that comes again is to be learnt from once
    characters = sum(map(len, passages))
    if characters < SHORTEST:
        raise InputError(
            f"{source}: the text has {characters:,} characters without repetitions, and a model learns to write from "
            f"{SHORTEST:,} at least: give a longer text"
        )
    return passages


def write_own(folder: Path, passages: Sequence[str]) -> None:
    """Passages to learn from, every twentieth (of a few, every third or so) to be measured on, and conversations."""
    every = min(20, len(passages) // 3)
    train = [passage for number, passage in enumerate(passages) if number % every != every // 2]
    held_out = [passage for number, passage in enumerate(passages) if number % every == every // 2]
    _write_folder(folder, as_text(train), as_text(held_out), filter(None, map(to_go_on, train)))


def passages_of(texts: Iterable[str]) -> Iterator[str]:
    """Whole paragraphs together until they are long enough; a long paragraph is cut between words."""
    for text in texts:
        passage = ""
        for part in (part for paragraph in text.split("\n\n") for part in cut(paragraph.strip("\n"))):
            passage = f"{passage}\n\n{part}" if passage else part
            if len(passage) >= PASSAGE:
                yield passage
                passage = ""
        if passage.strip():
            yield passage


def cut(paragraph: str) -> Iterator[str]:
    while len(paragraph) > 2 * PASSAGE:
        place = paragraph.rfind(" ", 1, PASSAGE) + 1 or PASSAGE
        yield paragraph[:place]
        paragraph = paragraph[place:]
    yield paragraph


def as_text(passages: Iterable[str]) -> Iterator[dict[str, str]]:
    return ({"text": passage} for passage in passages)


def to_go_on(passage: str) -> dict[str, list[dict[str, str]]] | None:
    """A passage as a conversation: the user gives its beginning, the assistant goes on to the end of a sentence.

    None where nothing is left to say. It fits into a row of 256 tokens even if each byte is a token of its own.
    """
    beginning = opening(passage)
    rest = passage[len(beginning) :].lstrip()
    said = start_of(rest, 180)
    if len(said) < len(rest):
        said = said[: max(said.rfind(mark) for mark in ".!?。！？") + 1] or said[: said.rfind(" ") + 1].rstrip() or said
    if not said:
        return None
    return {"messages": [{"role": "user", "content": beginning}, {"role": "assistant", "content": said}]}


def opening(passage: str) -> str:
    """The first words of a passage."""
    if passage == (start := start_of(passage, 60)):
        return passage
    return start[: start.rfind(" ")] if " " in start.strip() else start


def start_of(text: str, size: int) -> str:
    """As many characters from the start as fit into `size` bytes."""
    return text.encode()[:size].decode(errors="ignore")


def _write_folder(
    folder: Path, train: Iterable[dict[str, Any]], held_out: Iterable[dict[str, Any]], talks: Iterable[dict[str, Any]]
) -> None:
    with atomic_folder(folder) as temporary:
        for name, records in ((TRAIN, train), (HELD_OUT, held_out), (CONVERSATIONS, talks)):
            with (temporary / name).open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def pretrain_recipe(demo: Demo) -> PretrainRecipe:
    """A Llama-style model of the demo's texts, from nothing."""
    folder, size, text = demo.folder, demo.size, demo.folder / TEXT
    content = {
        "run": str(folder / BASE),
        "seed": demo.seed,
        "data": {"train": str(text / TRAIN), "validation": str(text / HELD_OUT), "context": size.context},
        "tokenizer": {"vocab_size": size.vocab_size},
        "model": {
            "hidden_size": size.hidden_size,
            "num_layers": size.layers,
            "num_heads": size.heads,
            "intermediate_size": size.hidden_size * 8 // 3 // 32 * 32,
            "max_positions": 2 * size.context,
            "tie_embeddings": True,
        },
        "optim": {
            "optimizer": "muon",
            "matrix_lr": size.matrix_lr,
            "lr": size.lr,
            "schedule": "wsd",
            "warmup": min(50, size.steps // 4),
            "decay": 0.3,
            "final": 0.02,
        },
        "train": {
            "steps": size.steps,
            "batch": size.batch,
            "evaluate_every": math.ceil(size.steps / 6),
            "save_every": math.ceil(size.steps / 6),
            "sample_prompts": demo.prompts(),
            "sample_tokens": 24,
        },
    }
    return parse_recipe(content, PretrainRecipe, "the demo's recipe")


def sft_recipe(demo: Demo) -> SFTRecipe:
    """The model of `pretrain_recipe` learns to answer from the demo's conversations."""
    folder, size, text = demo.folder, demo.size, demo.folder / TEXT
    content = {
        "run": str(folder / TUNED),
        "seed": demo.seed,
        "base": str(folder / BASE),
        "data": {
            "train": str(text / CONVERSATIONS),
            "context": size.context,
            "too_long": "drop",
            "replay": {"data": str(text / TRAIN), "fraction": 0.5},
        },
        "optim": {"lr": size.sft_lr, "final": 0.05, "warmup": min(10, size.sft_steps // 4)},
        "train": {
            "steps": size.sft_steps,
            "batch": size.batch,
            "evaluate_every": math.ceil(size.sft_steps / 3),
            "save_every": math.ceil(size.sft_steps / 2),
        },
        "report": {"max_tokens": 48},
    }
    return parse_recipe(content, SFTRecipe, "the demo's recipe")
