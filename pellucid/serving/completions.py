"""POST /v1/completions: a text goes on, as it is, without a chat template."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, cast

from pellucid.errors import InputError
from pellucid.serving.answers import Completion, CompletionChoice, FinishReason, Usage
from pellucid.serving.api import CompletionAsked
from pellucid.serving.logprobs import CompletionTable, Scored, joined
from pellucid.serving.loop import Ask, answers_of
from pellucid.serving.service import Service, usage

if TYPE_CHECKING:
    from pellucid.inference.engine import Event
    from pellucid.tokenizer.tokenizer import Tokenizer

DEFAULTS = {"max_tokens": 16}  # as OpenAI's API has it


@dataclass(frozen=True)
class Plan:
    """A request that has been understood. n: answers to each prompt."""

    asks: list[Ask]
    unwritten: list[int]  # tokens at the beginning of each prompt that its text does not show: a BOS that was added
    n: int

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
    return head.part(answers.whole(), usage(plan.prompts, answers.drawn))


async def parts(service: Service, asked: CompletionAsked) -> AsyncGenerator[Completion, None]:
    """The answer, part by part; with `include_usage` a last one that counts the tokens."""
    plan = await prepare(service, asked)
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
    if asked.best_of is not None:
        if asked.stream:
            raise InputError("best_of is known only at the end: ask without 'stream', or without 'best_of'")
        wanted["best_of"] = asked.best_of
    if asked.logprobs is not None:
        wanted["logprobs"] = asked.logprobs
        wanted["prompt_logprobs"] = asked.logprobs if asked.echo else None
    params = service.sampling(wanted, DEFAULTS).params
    given = _as_list(asked.prompt)
    service.loop.check_room(len(given) * answers_of(params))
    prompts = await service.in_text_thread(lambda: [_ids(service.tokenizer, one) for one in given])
    for number, ids in enumerate(prompts, 1):
        service.check_prompt(ids, f"prompt {number}" if len(prompts) > 1 else "the prompt")
    added = service.tokenizer.adds_bos
    unwritten = [int(added and isinstance(one, str)) for one in given]
    return Plan([Ask(ids, params) for ids in prompts], unwritten, params.n)


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


class Written(NamedTuple):
    """What one event adds to an answer."""

    text: str
    scored: list[Scored]
    reason: FinishReason | None
    detail: str | int | None


class Answers:
    """All answers to a request while they come. drawn: tokens so far."""

    def __init__(self, tokenizer: Tokenizer, asked: CompletionAsked, plan: Plan) -> None:
        self.drawn = 0
        self._tokenizer, self._asked, self._plan = tokenizer, asked, plan
        self._prompts: dict[int, list[Scored]] = {}  # by the prompt's number
        self._tables: dict[int, CompletionTable] = {}  # by the answer's index, as what follows
        self._parts: dict[int, list[CompletionChoice]] = {}

    def take(self, number: int, event: Event) -> CompletionChoice:
        """The next part of an answer to prompt `number`: the first one begins with the prompt, where it is echoed."""
        index = number * self._plan.n + event.index
        if event.prompt_logprobs is not None:
            self._prompts[number] = scored_prompt(self._plan.asks[number].prompt, event)
        echoed = bool(self._asked.echo) and index not in self._parts
        written = self._written(event)
        table = None
        if self._asked.logprobs is not None:
            prompt = self._prompts[number] if echoed else []
            builder = self._tables.setdefault(index, CompletionTable(self._tokenizer))
            table = builder.add([*prompt, *written.scored], unwritten=self._plan.unwritten[number] if echoed else 0)
        part = CompletionChoice(
            index=index,
            text=self._echo(number) + written.text if echoed else written.text,
            logprobs=table,
            finish_reason=written.reason,
            finish_detail=written.detail,
        )
        self._parts.setdefault(index, []).append(part)
        return part

    def whole(self) -> list[CompletionChoice]:
        """The answers, each in one piece."""
        return [_joined(self._parts[index]) for index in sorted(self._parts)]

    def _written(self, event: Event) -> Written:
        if self._asked.max_tokens == 0:
            return Written("", [], "length", "max_tokens")
        if event.finish_reason == "error":  # no token could be drawn
            return Written(event.text, [], "error", event.finish_detail)
        self.drawn += 1
        scored = Scored(event.token_id, event.logprob, event.alternatives)
        reason = cast("FinishReason | None", event.finish_reason)
        return Written(event.text, [scored], reason, event.finish_detail)

    def _echo(self, number: int) -> str:
        return self._tokenizer.decode(self._plan.asks[number].prompt[self._plan.unwritten[number] :])


def scored_prompt(prompt: Sequence[int], event: Event) -> list[Scored]:
    """The prompt's tokens with the probabilities that come with the first event."""
    assert event.prompt_logprobs is not None
    first = Scored(prompt[0], None, ())
    rest = [Scored(token, *scores) for token, scores in zip(prompt[1:], event.prompt_logprobs, strict=True)]
    return [first, *rest]


def _joined(parts: Sequence[CompletionChoice]) -> CompletionChoice:
    tables = [part.logprobs for part in parts if part.logprobs is not None]
    return CompletionChoice(
        index=parts[-1].index,
        text="".join(part.text for part in parts),
        logprobs=joined(tables) if tables else None,
        finish_reason=parts[-1].finish_reason,
        finish_detail=parts[-1].finish_detail,
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
