"""POST /v1/completions: a text goes on, as it is, without a chat template."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from pellucid.errors import InputError
from pellucid.serving.answers import Completion, CompletionChoice, FinishReason, Usage
from pellucid.serving.api import CompletionAsked
from pellucid.serving.errors import ApiError
from pellucid.serving.logprobs import CompletionTable, Scored, joined
from pellucid.serving.loop import Ask, answers_of
from pellucid.serving.service import Service, usage

if TYPE_CHECKING:
    from pellucid.inference.events import Event
    from pellucid.inference.params import SamplingParams
    from pellucid.tokenizer.tokenizer import Tokenizer

DEFAULTS = {"max_tokens": 16}  # as OpenAI's API has it


@dataclass(frozen=True)
class Prompts:
    """What the texts and ids of a request are as tokens. unwritten: how many at the beginning of each its text does not
    show: a BOS that was added."""

    ids: list[list[int]]
    unwritten: list[int]


async def complete(service: Service, asked: CompletionAsked) -> Completion:
    """The answer, whole. Raises `InputError` and `ApiError` for what cannot be answered."""
    params, given = parameters(service, asked), as_list(asked.prompt, "prompt")
    adapter = service.adapter(asked.model)
    with service.loop.room(len(given) * answers_of(params)):
        prompts = await read_prompts(service, given)
        answers = Answers(service.tokenizer, asked, prompts, params.n)
        async with service.loop.ask([Ask(ids, params, adapter=adapter) for ids in prompts.ids]) as events:
            async for number, event in events:
                answers.take(number, event)
    return Head(service, asked).part(answers.whole(), usage(prompts.ids, answers.drawn))


async def parts(service: Service, asked: CompletionAsked) -> AsyncGenerator[Completion, None]:
    """The answer, part by part; with `include_usage` a last one that counts the tokens."""
    params, given = parameters(service, asked), as_list(asked.prompt, "prompt")
    adapter = service.adapter(asked.model)
    head = Head(service, asked)
    with service.loop.room(len(given) * answers_of(params)):
        prompts = await read_prompts(service, given)
        answers = Answers(service.tokenizer, asked, prompts, params.n)
        async with service.loop.ask([Ask(ids, params, adapter=adapter) for ids in prompts.ids]) as events:
            async for number, event in events:
                yield head.part([answers.take(number, event)])
    if head.counts:
        yield head.part([], usage(prompts.ids, answers.drawn))


def parameters(service: Service, asked: CompletionAsked) -> SamplingParams:
    """How the answers are to be drawn."""
    wanted = asked.sampling()
    if asked.max_tokens == 0:
        if not asked.echo:
            raise InputError("max_tokens = 0 gives no answer: give at least 1, or 'echo' to have the prompt scored")
        wanted["max_tokens"] = 1  # its token is thrown away
    if asked.best_of is not None:
        if asked.stream:
            raise InputError("best_of is known only at the end: ask without 'stream', or without 'best_of'")
        wanted["best_of"] = asked.best_of
    if asked.beam_width is not None and asked.echo and asked.logprobs is not None:
        raise InputError("beam search scores no prompt: leave out 'echo', 'logprobs' or 'beam_width'")
    if asked.logprobs is not None:
        wanted["logprobs"] = asked.logprobs
        wanted["prompt_logprobs"] = asked.logprobs if asked.echo else None
    return service.sampling(wanted, DEFAULTS).params


async def read_prompts(service: Service, given: Sequence[str | list[int]]) -> Prompts:
    """The prompts as token ids."""
    prompts = await service.in_text_thread(lambda: [service.prompt_ids(one) for one in given])
    for number, ids in enumerate(prompts, 1):
        service.check_prompt(ids, f"prompt {number}" if len(prompts) > 1 else "the prompt")
    return Prompts(prompts, [int(service.tokenizer.adds_bos and isinstance(one, str)) for one in given])


def as_list(prompt: str | list[str] | list[int] | list[list[int]], field: str) -> Sequence[str | list[int]]:
    """One prompt or many, of text or token ids, as many. field: what the request calls them."""
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise ApiError(400, f"{field} is an empty list: give at least one text or token", param=field)
    items: Sequence[str | int | list[int]] = prompt
    tokens = [one for one in items if isinstance(one, int)]
    return [tokens] if tokens else [one for one in items if not isinstance(one, int)]


class Written(NamedTuple):
    """What one event adds to an answer."""

    text: str
    scored: list[Scored]
    reason: FinishReason | None
    detail: str | int | None


class Answers:
    """All answers to a request while they come. drawn: tokens so far."""

    def __init__(self, tokenizer: Tokenizer, asked: CompletionAsked, prompts: Prompts, n: int) -> None:
        self.drawn = 0
        self._tokenizer, self._asked, self._prompts, self._n = tokenizer, asked, prompts, n
        self._scored: dict[int, list[Scored]] = {}  # by the prompt's number
        self._tables: dict[int, CompletionTable] = {}  # by the answer's index, as what follows
        self._parts: dict[int, list[CompletionChoice]] = {}

    def take(self, number: int, event: Event) -> CompletionChoice:
        """The next part of an answer to prompt `number`: the first one begins with the prompt, where it is echoed."""
        index = number * self._n + event.index
        if event.prompt_logprobs is not None:
            self._scored[number] = scored_prompt(self._prompts.ids[number], event)
        echoed = bool(self._asked.echo) and index not in self._parts
        written = self._written(event)
        table = None
        if self._asked.logprobs is not None:
            prompt = self._scored[number] if echoed else []
            begun = not echoed and self._prompts.ids[number] != [self._tokenizer.bos_id]
            builder = self._tables.setdefault(index, CompletionTable(self._tokenizer, begun=begun))
            table = builder.add([*prompt, *written.scored], unwritten=self._prompts.unwritten[number] if echoed else 0)
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
        return Written(event.text, [scored], event.finish_reason, event.finish_detail)

    def _echo(self, number: int) -> str:
        return self._tokenizer.decode(self._prompts.ids[number][self._prompts.unwritten[number] :])


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
        self._model = asked.model or service.settings.name

    def part(self, choices: list[CompletionChoice], counted: Usage | None = None) -> Completion:
        part = Completion(
            id=self._id, object="text_completion", created=self._created, model=self._model, choices=choices
        )
        if self.counts or counted is not None:
            part.usage = counted
        return part
