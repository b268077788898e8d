"""The demo's preferences: answers that are known to be right or wrong, and a model that learns which are better.

The fine-tuned model answers each question several times; the world says which of its answers is better; direct
preference optimisation makes the better ones likelier (Rafailov et al. 2023, section 4). Nothing is asked about people
who are held out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from random import Random

from pellucid.alignment.candidates import Candidates, candidates, prompt_of
from pellucid.alignment.dpo_recipe import DPORecipe
from pellucid.checkpoints.atomic import atomic_file
from pellucid.checkpoints.load import load
from pellucid.data.tinyworld import SPLITS, Question, exact_match
from pellucid.data.tinyworld.questions import answer_text
from pellucid.evaluation.first_model import PREFERRED, TUNED, Demo
from pellucid.inference.engine import Engine
from pellucid.inference.params import SamplingParams
from pellucid.training.recipe import parse_recipe

PREFERENCES = "preferences.jsonl"
ANSWERS = 8  # to each question
WORDINGS = 2  # of each question, other ones than in the conversations
FIRST_WORDING = 1_000  # the seed of these wordings; those of the examination are far from it
ANSWER_TOKENS = 24
FEWEST = 24  # questions, to learn from at all


def write_preferences(demo: Demo, tell: Callable[[str], None]) -> bool:
    """`preferences.jsonl`: questions with the model's own answers, and which are right; a file that is there stays.

    Where no answer is right, what the world says stands beside them. Questions to which all answers are right are
    left out: nothing is to be preferred. Returns whether there are enough to learn from.
    """
    file = demo.folder / PREFERENCES
    if file.is_file():
        return len(file.read_text(encoding="utf-8").splitlines()) >= FEWEST
    model, tokenizer = load(demo.folder / TUNED, dtype="float32")
    asked = {question.text: question for question in questions(demo)}
    tell(f"{ANSWERS} answers to each of {len(asked):,} questions, drawn at temperature 1")
    prompts = [prompt_of(text, "the world") for text in asked]
    params = SamplingParams(temperature=1.0, max_tokens=ANSWER_TOKENS)
    found = candidates(Engine(model, tokenizer), prompts, ANSWERS, params, demo.seed)
    rng = Random(demo.seed)
    lines = list(filter(None, (ranked(*each, rng) for each in zip(found, asked.values(), strict=True))))
    tell(f"{len(lines):,} of them got right answers and wrong ones")
    with atomic_file(file) as temporary, temporary.open("w", encoding="utf-8") as stream:
        stream.writelines(lines)
    return len(lines) >= FEWEST


def questions(demo: Demo) -> Iterator[Question]:
    """What is asked: all about the people of the conversations, with an answer and without."""
    world = demo.world
    for without_answer in (False, True):
        for wording in range(WORDINGS):
            yield from world.questions(SPLITS[0], FIRST_WORDING + wording, without_answer)


def ranked(found: Candidates, question: Question, rng: Random) -> str | None:
    """A record of preferences: the answers, 1 for each right one, a right refusal too; None where all are equal."""
    answers = list(found.answers)
    if not any(exact_match(question, answer) for answer in answers):
        answers.append(answer_text(question, rng))
    scores = [float(exact_match(question, answer)) for answer in answers]
    if len(set(scores)) < 2:
        return None
    record = {"prompt": question.text, "answers": answers, "scores": scores}
    return json.dumps(record, ensure_ascii=False) + "\n"


def dpo_recipe(demo: Demo) -> DPORecipe:
    """The fine-tuned model learns from `preferences.jsonl`."""
    size = demo.size
    content = {
        "run": str(demo.folder / PREFERRED),
        "seed": demo.seed,
        "base": str(demo.folder / TUNED),
        "data": {"train": str(demo.folder / PREFERENCES), "context": size.context // 2, "too_long": "drop"},
        "dpo": {"beta": 0.1},
        "optim": {"lr": size.dpo_lr, "final": 0.1, "warmup": min(10, size.dpo_steps // 4)},
        "train": {
            "steps": size.dpo_steps,
            "batch": 2,  # rows, of some pairs each
            "evaluate_every": math.ceil(size.dpo_steps / 3),
            "save_every": math.ceil(size.dpo_steps / 2),
        },
        "report": {"max_tokens": 48},
    }
    return parse_recipe(content, DPORecipe, "the demo's recipe")
