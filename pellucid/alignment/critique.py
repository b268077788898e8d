"""Critique, revision and judgement by a principle, by the model itself (Bai et al. 2022, sections 3.1 and 4.1).

Phase 1: the model answers, is asked what is wrong with that by a principle, and is asked to answer again.
Phase 2: the model is asked which of two answers is the better one by a principle. What counts is not the letter that it
would write but how likely it makes each, and both orders are asked, since models prefer a place:

    P(first | order) = e^l_first / (e^l_first + e^l_second),    l the log-probability of the letter of that answer
    P(first)         = (P(first | first is A) + P(first | first is B)) / 2
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pellucid.alignment.candidates import Prompt
from pellucid.alignment.constitution import Constitution, Principle
from pellucid.alignment.judges import as_text
from pellucid.data.messages import text_of
from pellucid.data.order import random_number
from pellucid.errors import InputError
from pellucid.inference.engine import Engine
from pellucid.inference.output import Outputs
from pellucid.inference.params import SamplingParams

if TYPE_CHECKING:
    from pellucid.models.decoder import Decoder
    from pellucid.tokenizer.tokenizer import Tokenizer

Message = Mapping[str, Any]
LETTERS = ("A", "B")
QUESTION = """\
Here is a conversation, and two answers to what was said last.

{conversation}

Answer A: {a}

Answer B: {b}

{choice} Reply with the letter A or B alone."""


@dataclass(frozen=True, slots=True)
class Draft:
    """An answer to a prompt that is to be looked at by a principle. seed: of what is drawn on the way."""

    prompt: Prompt
    answer: str
    principle: Principle
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Revision:
    """What was found wrong with an answer, and the answer after that; empty where the critic wrote nothing.

    cut: the answer was cut off.
    """

    critique: str
    answer: str
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to a prompt, of which one is better by a principle."""

    prompt: Prompt
    first: str
    second: str
    principle: Principle


@dataclass(frozen=True, slots=True)
class Judgement:
    """How likely the first answer is the better one: when it stood first, and when it stood last.

    log_probs: ln P of the letters A and B when it stood first, then when it stood last; None where a rule judged.
    """

    stood_first: float
    stood_last: float
    log_probs: tuple[float, float, float, float] | None = None

    @property
    def probability(self) -> float:
        """The mean of both orders."""
        return (self.stood_first + self.stood_last) / 2

    @property
    def swayed(self) -> bool:
        """Whether the place of an answer, not the answer, decided."""
        return (self.stood_first - 0.5) * (self.stood_last - 0.5) < 0


@dataclass(frozen=True, slots=True)
class Said:
    """What a model said. cut: max_tokens or the context ended it, not the model."""

    text: str
    cut: bool = False


Critic = Callable[[Sequence[Draft]], list[Revision]]
Judge = Callable[[Sequence[Pair]], list[Judgement]]


class Voice:
    """A model that answers, criticises, revises and judges, through its own chat template.

    max_tokens: of each thing that it writes. temperature: 0 for the most likely token at every step.
    """

    def __init__(
        self, model: Decoder, tokenizer: Tokenizer, max_tokens: int, temperature: float, together: int
    ) -> None:
        self.tokenizer, self.max_tokens, self.temperature = tokenizer, max_tokens, temperature
        self.engine = Engine(model, tokenizer, max_sequences=together)

    def say(self, chats: Sequence[Sequence[Message]], seeds: Sequence[int]) -> list[Said]:
        """What it says next in each conversation; the same whatever else is asked beside it."""
        with Outputs(self.engine) as outputs:
            for chat, seed in zip(chats, seeds, strict=True):
                params = SamplingParams(temperature=self.temperature, max_tokens=self.max_tokens, seed=seed)
                outputs.add(self.ids(chat), params, in_chat=True)
            # No data may hold NUL.
            return [
                Said("" if "\0" in one.text else one.text.strip(), one.answers[0].finish_reason == "length")
                for one in outputs.answered()
            ]

    def critique(self, drafts: Sequence[Draft]) -> list[Revision]:
        """Asks for the critique and, with that in the conversation, for the revision. This is a `Critic`."""
        chats = [[*conversation(draft), user(draft.principle.critique)] for draft in drafts]
        critiques = self.say(chats, [random_number(2**62, "critique", draft.seed) for draft in drafts])
        for chat, critique, draft in zip(chats, critiques, drafts, strict=True):
            chat += [assistant(critique.text), user(draft.principle.revision)]
        revisions = self.say(chats, [random_number(2**62, "revision", draft.seed) for draft in drafts])
        return [Revision(one.text, other.text, other.cut) for one, other in zip(critiques, revisions, strict=True)]

    def judge(self, pairs: Sequence[Pair]) -> list[Judgement]:
        """Asks about each pair in both orders. This is a `Judge`."""
        chats = [[user(question)] for pair in pairs for question in questions(pair)]
        found = iter(self.letters(chats))
        judgements = []
        for _ in pairs:
            (a, b), (swapped_a, swapped_b) = next(found), next(found)
            judgements.append(
                Judgement(preference(a, b), preference(swapped_b, swapped_a), (a, b, swapped_a, swapped_b))
            )
        return judgements

    def letters(self, chats: Sequence[Sequence[Message]]) -> list[tuple[float, float]]:
        """ln P of each of `LETTERS` as what it says next in each conversation, in nats."""
        sought = [self.tokenizer.encode(letter) for letter in LETTERS]
        params = SamplingParams(max_tokens=0, prompt_logprobs=0)
        with Outputs(self.engine) as outputs:
            for chat in chats:
                ids = self.ids(chat)
                for letter in sought:
                    outputs.add([*ids, *letter], params)
            scores = [[score for score, _ in one.prompt_logprobs or ()] for one in outputs.answered()]
        sums = [sum(one[-len(sought[place % 2]) :]) for place, one in enumerate(scores)]
        return list(zip(sums[::2], sums[1::2], strict=True))

    def ids(self, chat: Sequence[Message]) -> list[int]:
        return self.tokenizer.apply_chat_template(chat, add_generation_prompt=True).ids


def check_room(
    tokenizer: Tokenizer, longest: int, max_tokens: int, prompts: Sequence[Prompt], constitution: Constitution, *,
    judging: bool,
) -> None:  # fmt: skip
    """`InputError` for the first prompt with which the longest conversation about it may not fit the context.

    longest: tokens of a conversation. max_tokens: of each thing that is said in it. judging: two answers are compared;
    else an answer is criticised and revised.
    """

    def length(chat: Sequence[Message]) -> int:
        return len(tokenizer.apply_chat_template(chat, add_generation_prompt=True).ids)

    asked = 1 + max(len(tokenizer.encode(one.critique + one.revision + one.choice)) for one in constitution.principles)
    frame = length([user(QUESTION)]) if judging else length([user(""), assistant(""), user("")])
    said = (2 if judging else 3) * max_tokens
    for prompt in prompts:
        if (need := length(prompt.messages) + asked + frame + said) > longest:
            raise InputError(
                f"{prompt.place}: the prompt, what is asked about it and what is answered may take {need} tokens, "
                f"and the context holds {longest}: give a shorter prompt or a smaller answers.max_tokens"
            )


def preference(first: float, second: float) -> float:
    """e^first / (e^first + e^second), of log-probabilities."""
    return 1 / (1 + math.exp(min(second - first, 700.0)))


def conversation(draft: Draft) -> list[Message]:
    return [*draft.prompt.messages, assistant(draft.answer)]


def questions(pair: Pair) -> tuple[str, str]:
    """What the judge is asked about a pair: with the first answer first, then with it last."""
    said = pair.prompt.messages
    text = as_text(said) if len(said) > 1 else text_of(said[0])
    asked = [(pair.first, pair.second), (pair.second, pair.first)]
    one, other = (QUESTION.format(conversation=text, a=a, b=b, choice=pair.principle.choice) for a, b in asked)
    return one, other


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}
