"""What a model knows of a TinyWorld, what it admits not to know, and what it invents. All of it is counted.

Because every fact of the world is known, so is the truth of every answer: it is right, it is a refusal, or it is
invented. Questions about people who are held out measure what was understood: no conversation was about them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pellucid.data.order import random_number
from pellucid.data.tinyworld import SPLITS, Question, TinyWorld, exact_match, is_refusal
from pellucid.evaluation.first_model import QUIZ
from pellucid.inference.engine import Engine
from pellucid.inference.output import Outputs, answer_all
from pellucid.inference.params import SamplingParams
from pellucid.models.decoder import Decoder
from pellucid.tokenizer.tokenizer import Tokenizer

Ask = Callable[[Sequence[str]], list[str]]
"""Answers to questions, one each."""

ANSWER_TOKENS = 24  # more than the longest answer has
DRAWS = 4


@dataclass(frozen=True, slots=True)
class Share:
    """`count` of `of`."""

    count: int
    of: int

    def __str__(self) -> str:
        return f"{self.count / self.of:.0%} ({self.count} of {self.of})" if self.of else "none asked"


@dataclass(frozen=True, slots=True)
class Reply:
    """A question, about people of which split, and what a model answered."""

    question: Question
    people: str
    text: str

    @property
    def right(self) -> bool:
        """The answer and nothing else, or a refusal where there is no answer."""
        return exact_match(self.question, self.text)

    @property
    def refused(self) -> bool:
        return is_refusal(self.text)


@dataclass(frozen=True, slots=True)
class Knowledge:
    """right: exact matches among questions that have an answer, by the split of people. refused: those of them that
    were refused although the texts tell the answer. invented: by the sort of open question, about people who are held
    out, those to which an answer was made up; "all" is their sum."""

    right: dict[str, Share]
    refused: dict[str, Share]
    invented: dict[str, Share]


def examine(world: TinyWorld, ask: Ask, seed: int = 0) -> list[Reply]:
    """Asks all questions of the world, worded by `seed`; those without an answer too."""
    asked = [
        (question, people)
        for people in SPLITS
        for without_answer in (False, True)
        for question in world.questions(people, seed, without_answer)
    ]
    answers = ask([question.text for question, _ in asked])
    return [Reply(question, people, answer) for (question, people), answer in zip(asked, answers, strict=True)]


def knowledge(replies: Iterable[Reply]) -> Knowledge:
    """Counts what `examine` gave."""
    replies = list(replies)
    told = {people: [r for r in replies if r.people == people and r.question.sort == "told"] for people in SPLITS}
    unanswerable = [reply for reply in replies if reply.people == SPLITS[1] and reply.question.sort != "told"]
    sorts = sorted({reply.question.sort for reply in unanswerable})
    groups = {"all": unanswerable, **{sort: [r for r in unanswerable if r.question.sort == sort] for sort in sorts}}
    return Knowledge(
        {people: _share([reply.right for reply in group]) for people, group in told.items()},
        {people: _share([reply.refused for reply in group]) for people, group in told.items()},
        {sort: _share([not reply.refused for reply in group]) for sort, group in groups.items()},
    )


def right_by_chance(world: TinyWorld, model: Decoder, tokenizer: Tokenizer) -> Share:
    """Right answers, right refusals too, among `DRAWS` that are drawn at temperature 1 to each question about people
    who are held out: what a model is worth that does not always take the likeliest token."""
    asked = [question for without in (False, True) for question in world.questions(SPLITS[1], 0, without)]
    params = SamplingParams(temperature=1.0, max_tokens=ANSWER_TOKENS, n=DRAWS)
    with Outputs(Engine(model, tokenizer)) as outputs:
        for question, ids in zip(asked, in_chat(tokenizer, [one.text for one in asked]), strict=True):
            own = params.with_({"seed": random_number(2**31, "examination", question.text)})  # else all draw alike
            outputs.add(ids, own, in_chat=True)
        drawn = list(outputs.answered())
    return _share(
        [
            exact_match(question, answer.text.strip())
            for question, one in zip(asked, drawn, strict=True)
            for answer in one.answers
        ]
    )


def _share(values: Sequence[bool]) -> Share:
    return Share(sum(values), len(values))


def ask_as_quiz(model: Decoder, tokenizer: Tokenizer) -> Ask:
    """Asks a model that only continues text: the answer is what it puts on the line behind "Answer:"."""

    def ask(questions: Sequence[str]) -> list[str]:
        ids = [tokenizer.encode(QUIZ.format(question), add_bos=tokenizer.adds_bos) for question in questions]
        return _answers(model, tokenizer, ids, SamplingParams(temperature=0, max_tokens=ANSWER_TOKENS, stop=("\n",)))

    return ask


def ask_in_chat(model: Decoder, tokenizer: Tokenizer) -> Ask:
    """Asks a model that has learnt to answer, through its chat template."""

    def ask(questions: Sequence[str]) -> list[str]:
        params = SamplingParams(temperature=0, max_tokens=ANSWER_TOKENS)
        return _answers(model, tokenizer, in_chat(tokenizer, questions), params)

    return ask


def in_chat(tokenizer: Tokenizer, questions: Iterable[str]) -> list[list[int]]:
    """Each question through the chat template, up to the answer."""
    chats = ([{"role": "user", "content": question}] for question in questions)
    return [tokenizer.apply_chat_template(chat, add_generation_prompt=True).ids for chat in chats]


def _answers(
    model: Decoder, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]], params: SamplingParams
) -> list[str]:
    return [one.text.strip() for one in answer_all(Engine(model, tokenizer), prompts, params)]
