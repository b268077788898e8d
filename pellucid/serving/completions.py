"""POST /v1/completions: a text goes on, as it is, without a chat template."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pellucid.errors import InputError
from pellucid.serving.answers import Completion, CompletionChoice, Usage
from pellucid.serving.api import CompletionAsked
from pellucid.serving.logprobs import CompletionTable, Scored, joined
from pellucid.serving.loop import Ask
from pellucid.serving.service import Service, usage

if TYPE_CHECKING:
    from pellucid.inference.engine import Event
    from pellucid.tokenizer.tokenizer import Tokenizer

DEFAULTS = {"max_tokens": 16}  # as OpenAI's API has it


@dataclass(frozen=True)
class Plan:
    """A request that has been understood. candidates: answers drawn for each prompt, of which `n` are given."""

    asks: list[Ask]
    unwritten: list[int]  # tokens at the beginning of each prompt that its text does not show: a BOS that was added
    n: int
    candidates: int

    @property
    def prompts(self) -> list[Sequence[int]]:
        return [one.prompt for one in self.asks]


async def complete(service: Service, asked: CompletionAsked) -> Completion:
    """The answer, whole. Raises `InputError` and `ApiError` for what cannot be answered."""
    plan = await prepare(service, asked)
    answers = Answers(service.tokenizer, asked, plan)
    async with service.loop.ask(plan.asks) as events:
        async for number, event in events:
            answers.take(number, event)
    head = Head(service, asked)
    return head.part(answers.best(), usage(plan.prompts, answers.drawn))


async def parts(service: Service, asked: CompletionAsked) -> AsyncGenerator[Completion, None]:
    """The answer, part by part; with `include_usage` a last one that counts the tokens."""
    plan = await prepare(service, asked)
    if plan.candidates > plan.n:
        raise InputError("best_of is known only at the end: ask without 'stream', or without 'best_of'")
    answers = Answers(service.tokenizer, asked, plan)
    head = Head(service, asked)
    async with service.loop.ask(plan.asks) as events:
        async for number, event in events:
            yield head.part([answers.take(number, event)])
    if head.counts:
        yield head.part([], usage(plan.prompts, answers.drawn))


async def prepare(service: Service, asked: CompletionAsked) -> Plan:
    """The prompts' ids and the parameters of each."""
    wanted = asked.sampling()
    if asked.max_tokens == 0:
        if not asked.echo:
            raise InputError("max_tokens = 0 gives no answer: give at least 1, or 'echo' to have the prompt scored")
        wanted["max_tokens"] = 1  # its token is thrown away
    n = asked.n or 1
    candidates = n if asked.best_of is None else asked.best_of
    if candidates < n:
        raise InputError(f"best_of = {candidates} is less than n = {n}: draw at least what is to be given")
    wanted["n"] = candidates
    if asked.logprobs is not None or candidates > n:
        wanted["logprobs"] = asked.logprobs or 0
    if asked.logprobs is not None and asked.echo:
        wanted["prompt_logprobs"] = asked.logprobs
    params = service.sampling(wanted, DEFAULTS).params
    given = _as_list(asked.prompt)
    service.loop.check_room(len(given) * candidates)
    prompts = await service.in_text_thread(lambda: [_ids(service.tokenizer, one) for one in given])
    for number, ids in enumerate(prompts, 1):
        service.check_prompt(ids, f"prompt {number}" if len(prompts) > 1 else "the prompt")
    added = service.tokenizer.adds_bos
    unwritten = [int(added and isinstance(one, str)) for one in given]
    return Plan([Ask(ids, params) for ids in prompts], unwritten, n, candidates)


def _as_list(prompt: str | list[str] | list[int] | list[list[int]]) -> Sequence[str | list[int]]:
    """One prompt or many, of text or token ids, as many."""
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise InputError("the prompt is an empty list: give at least one text or token")
    items: Sequence[str | int | list[int]] = prompt
    tokens = [one for one in items if isinstance(one, int)]
    return [tokens] if tokens else [one for one in items if not isinstance(one, int)]


def _ids(tokenizer: Tokenizer, prompt: str | list[int]) -> list[int]:
    from pellucid.inference.generate import prompt_ids

    return prompt_ids(tokenizer, prompt) if isinstance(prompt, str) else prompt


class Answers:
    """All answers to a request while they come. drawn: tokens so far, of those too that are not given."""

    def __init__(self, tokenizer: Tokenizer, asked: CompletionAsked, plan: Plan) -> None:
        self.drawn = 0
        self._tokenizer, self._asked, self._plan = tokenizer, asked, plan
        self._prompts: dict[int, list[Scored]] = {}  # by the prompt's number
        self._tables: dict[tuple[int, int], CompletionTable] = {}  # by the prompt's number and the answer's index
        self._parts: dict[tuple[int, int], list[CompletionChoice]] = {}
        self._scores: dict[tuple[int, int], list[float]] = {}

    def take(self, number: int, event: Event) -> CompletionChoice:
        """The next part of an answer."""
        key = (number, event.index)
        first = key not in self._parts
        if event.prompt_logprobs is not None:
            self._prompts[number] = scored_prompt(self._plan.asks[number].prompt, event)
        text, scored, reason = (
            event.text,
            [Scored(event.token_id, event.logprob, event.alternatives)],
            event.finish_reason,
        )
        if self._asked.max_tokens == 0:
            text, scored, reason = "", [], "length"
        else:
            self.drawn += 1
        self._scores.setdefault(key, []).append(event.logprob or 0.0)
        echoed = self._prompts.get(number, []) if first and self._asked.echo else []
        if first and self._asked.echo:
            text = self._tokenizer.decode(self._plan.asks[number].prompt[self._plan.unwritten[number] :]) + text
        table = None
        if self._asked.logprobs is not None:
            builder = self._tables.setdefault(key, CompletionTable(self._tokenizer))
            table = builder.add([*echoed, *scored], unwritten=self._plan.unwritten[number] if echoed else 0)
        part = CompletionChoice(
            index=number * self._plan.n + event.index, text=text, logprobs=table, finish_reason=reason
        )
        self._parts.setdefault(key, []).append(part)
        return part

    def best(self) -> list[CompletionChoice]:
        """The whole answers: of each prompt's candidates the `n` whose tokens are the most likely on average."""
        chosen = []
        for number in range(len(self._plan.asks)):
            keys = sorted(key for key in self._parts if key[0] == number)
            if len(keys) > self._plan.n:
                keys.sort(key=lambda key: -sum(self._scores[key]) / len(self._scores[key]))
            for place, key in enumerate(keys[: self._plan.n]):
                chosen.append(_whole(number * self._plan.n + place, self._parts[key]))
        return chosen


def scored_prompt(prompt: Sequence[int], event: Event) -> list[Scored]:
    """The prompt's tokens with the probabilities that come with the first event."""
    assert event.prompt_logprobs is not None
    first = Scored(prompt[0], None, ())
    rest = [Scored(token, *scores) for token, scores in zip(prompt[1:], event.prompt_logprobs, strict=True)]
    return [first, *rest]


def _whole(index: int, pieces: Sequence[CompletionChoice]) -> CompletionChoice:
    tables = [piece.logprobs for piece in pieces if piece.logprobs is not None]
    return CompletionChoice(
        index=index,
        text="".join(piece.text for piece in pieces),
        logprobs=joined(tables) if tables else None,
        finish_reason=pieces[-1].finish_reason,
    )


class Head:
    """What all parts of one answer begin with. counts: whether the client wants its tokens counted in a stream."""

    def __init__(self, service: Service, asked: CompletionAsked) -> None:
        self.counts = asked.stream_options is not None and bool(asked.stream_options.include_usage)
        self._id = f"cmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._model = service.settings.name

    def part(self, choices: list[CompletionChoice], counted: Usage | None = None) -> Completion:
        part = Completion(
            id=self._id, object="text_completion", created=self._created, model=self._model, choices=choices
        )
        if self.counts or counted is not None:
            part.usage = counted
        return part
