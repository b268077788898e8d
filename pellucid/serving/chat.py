"""POST /v1/chat/completions: messages through the model's own template, tools, and what the model says."""

from __future__ import annotations

import json
import secrets
import time
import uuid
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pellucid.errors import InputError
from pellucid.serving.answers import (
    Answer,
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatLogprob,
    ChatLogprobs,
    ChunkChoice,
    FinishReason,
    FunctionCall,
    ToolCall,
    Usage,
)
from pellucid.serving.api import ChatAsked, Message, Tool
from pellucid.serving.logprobs import Scored, in_chat
from pellucid.serving.loop import Ask, answers_of
from pellucid.serving.service import Service, usage
from pellucid.serving.tools import Call, ToolParser

if TYPE_CHECKING:
    from pellucid.inference.events import Event
    from pellucid.inference.params import SamplingParams
    from pellucid.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Piece:
    """What one token brought: parts of the message, perhaps none; its probability, where asked for."""

    deltas: list[Answer]
    logprobs: list[ChatLogprob] | None
    finish_reason: FinishReason | None
    finish_detail: str | int | None


async def complete(service: Service, asked: ChatAsked) -> ChatCompletion:
    """The answer, whole. Raises `InputError` and `ApiError` for what cannot be answered."""
    params = parameters(service, asked)
    speakers = [Speaker(service.tokenizer, asked) for _ in range(params.n)]
    pieces: list[list[Piece]] = [[] for _ in speakers]
    adapter = service.adapter(asked.model)
    with service.loop.room(answers_of(params)):
        prompt = await read_prompt(service, asked)
        async with service.loop.ask([Ask(prompt, params, in_chat=True, adapter=adapter)]) as events:
            async for _, event in events:
                pieces[event.index].append(speakers[event.index].take(event))
    return ChatCompletion(
        id=_new_id(),
        object="chat.completion",
        created=int(time.time()),
        model=asked.model or service.settings.name,
        choices=[_whole(index, own) for index, own in enumerate(pieces)],
        usage=usage([prompt], sum(map(len, pieces))),
    )


async def parts(service: Service, asked: ChatAsked) -> AsyncGenerator[ChatChunk, None]:
    """The answer, part by part: the role first, the reason of the end last, and with `include_usage` the tokens."""
    params = parameters(service, asked)
    speakers = [Speaker(service.tokenizer, asked) for _ in range(params.n)]
    head = Head(service, asked)
    drawn = 0
    adapter = service.adapter(asked.model)
    with service.loop.room(answers_of(params)):
        prompt = await read_prompt(service, asked)
        async with service.loop.ask([Ask(prompt, params, in_chat=True, adapter=adapter)]) as events:
            for index in range(params.n):
                yield head.chunk(index, Answer(role="assistant", content=""))
            async for _, event in events:
                drawn += 1
                for chunk in head.chunks(event.index, speakers[event.index].take(event)):
                    yield chunk
    if head.counts:
        yield head.last(usage([prompt], drawn))


def parameters(service: Service, asked: ChatAsked) -> SamplingParams:
    """How the answer is to be drawn."""
    wanted = asked.sampling()
    if asked.max_completion_tokens is not None:
        wanted["max_tokens"] = asked.max_completion_tokens
    if asked.logprobs:
        wanted["logprobs"] = asked.top_logprobs or 0
    wanted.update(_constraint(asked))
    if wanted.get("max_tokens") == 0:
        raise InputError("max_tokens = 0 gives no answer: give at least 1")
    return service.sampling(wanted, {}).params


async def read_prompt(service: Service, asked: ChatAsked) -> list[int]:
    """The token ids of what the template writes."""
    ids = await service.in_text_thread(lambda: chat_ids(service.tokenizer, asked))
    service.check_prompt(ids, "the conversation")
    return ids


def _constraint(asked: ChatAsked) -> dict[str, Any]:
    """`response_format` as a sampling parameter."""
    form = asked.response_format
    if form is None or form.type == "text":
        return {}
    if form.json_schema is None:
        return {"constraint": {"json_object": True}}
    return {"constraint": {"json_schema": form.json_schema.schema_}}


def chat_ids(tokenizer: Tokenizer, asked: ChatAsked) -> list[int]:
    """The token ids of the conversation, with the tools if the model may call them.

    Raises `InputError` where the template has no place for tools: they would be dropped without a word.
    """
    messages = [for_template(message, number) for number, message in enumerate(asked.messages, 1)]
    variables = asked.chat_template_kwargs or {}
    tools = [_without_nulls(tool) for tool in offered(asked)] or None
    ids = tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True, **variables).ids
    if tools is None:
        return ids
    try:
        without = tokenizer.apply_chat_template(messages, add_generation_prompt=True, **variables).ids
    except InputError:  # the template cannot do without tools
        return ids
    if ids == without:
        raise InputError("the chat template of this model has no place for tools: leave 'tools' out, or serve another")
    return ids


def offered(asked: ChatAsked) -> Sequence[Tool]:
    """The tools that the model may call."""
    return [] if asked.tool_choice == "none" else asked.tools or []


def _without_nulls(tool: Tool) -> dict[str, Any]:
    function = {name: value for name, value in tool.function if value is not None}
    return {"type": tool.type, "function": function}


def for_template(message: Message, number: int) -> dict[str, Any]:
    """A message as templates read it: what is not there left out, the arguments of calls as objects."""
    fields = {name: value for name, value in message if value is not None}
    if message.tool_calls is not None:
        fields["tool_calls"] = [_call_for_template(call, f"message {number}") for call in message.tool_calls]
    return fields


def _call_for_template(call: Mapping[str, Any], where: str) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, dict):
        raise InputError(f"{where}: a tool call needs a 'function' with a 'name' and 'arguments'")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            arguments = None
    if not isinstance(arguments, dict):
        raise InputError(f"{where}: the arguments of {function.get('name')!r} are not the text of a JSON object")
    return {**call, "function": {**function, "arguments": arguments}}


class Speaker:
    """One answer while it comes: text and tool calls told apart, probabilities in OpenAI's shape."""

    def __init__(self, tokenizer: Tokenizer, asked: ChatAsked) -> None:
        self._tokenizer = tokenizer
        self._scored = bool(asked.logprobs)
        names = {tool.function.name for tool in offered(asked)}
        self._parser = ToolParser(names) if names else None
        self._calls = 0

    def take(self, event: Event) -> Piece:
        """What the event brings."""
        found: list[str | Call] = [event.text] if event.text else []
        if self._parser is not None:
            found = self._parser.push(event.text)
            if event.finish_reason is not None:
                found += self._parser.finish()
        logprobs = None
        if self._scored and event.finish_reason != "error":
            logprobs = [in_chat(self._tokenizer, Scored(event.token_id, event.logprob, event.alternatives))]
        reason: FinishReason | None = event.finish_reason
        if reason == "stop" and self._parser is not None and self._parser.called:
            reason = "tool_calls"
        return Piece([self._delta(one) for one in found], logprobs, reason, event.finish_detail)

    def _delta(self, found: str | Call) -> Answer:
        if isinstance(found, str):
            return Answer(content=found)
        call = ToolCall(
            index=self._calls,
            id=secrets.token_hex(5)[:9],  # nine letters or digits: Mistral's templates take no other ids
            type="function",
            function=FunctionCall(name=found.name, arguments=found.arguments),
        )
        self._calls += 1
        return Answer(tool_calls=[call])


def _whole(index: int, pieces: Sequence[Piece]) -> ChatChoice:
    """The parts of an answer, joined."""
    deltas = [delta for piece in pieces for delta in piece.deltas]
    text = "".join(delta.content or "" for delta in deltas)
    calls = [
        ToolCall(id=call.id, type=call.type, function=call.function)
        for delta in deltas
        for call in delta.tool_calls or []
    ]
    message = Answer(role="assistant", content=None if calls and not text else text)
    if calls:
        message.tool_calls = calls
    scored = [piece.logprobs for piece in pieces if piece.logprobs is not None]
    reason = pieces[-1].finish_reason
    assert reason is not None
    return ChatChoice(
        index=index,
        message=message,
        logprobs=ChatLogprobs(content=[entry for entries in scored for entry in entries]) if scored else None,
        finish_reason=reason,
        finish_detail=pieces[-1].finish_detail,
    )


class Head:
    """What all chunks of one answer begin with. counts: whether the client wants its tokens counted."""

    def __init__(self, service: Service, asked: ChatAsked) -> None:
        self.counts = asked.stream_options is not None and bool(asked.stream_options.include_usage)
        self._id = _new_id()
        self._created = int(time.time())
        self._model = asked.model or service.settings.name

    def chunk(
        self,
        index: int,
        delta: Answer,
        logprobs: list[ChatLogprob] | None = None,
        end: tuple[FinishReason | None, str | int | None] = (None, None),
    ) -> ChatChunk:
        scored = None if logprobs is None else ChatLogprobs(content=logprobs)
        choice = ChunkChoice(index=index, delta=delta, logprobs=scored, finish_reason=end[0])
        if end[0] is not None:
            choice.finish_detail = end[1]
        return self._of([choice], None)

    def chunks(self, index: int, piece: Piece) -> Iterator[ChatChunk]:
        """Those of a piece: the probabilities go with its first part, and the end has a chunk of its own."""
        logprobs = piece.logprobs
        for delta in piece.deltas or ([Answer(content="")] if logprobs else []):
            yield self.chunk(index, delta, logprobs)
            logprobs = None
        if piece.finish_reason is not None:
            yield self.chunk(index, Answer(), end=(piece.finish_reason, piece.finish_detail))

    def last(self, counted: Usage) -> ChatChunk:
        return self._of([], counted)

    def _of(self, choices: list[ChunkChoice], counted: Usage | None) -> ChatChunk:
        chunk = ChatChunk(
            id=self._id,
            object="chat.completion.chunk",
            created=self._created,
            model=self._model,
            choices=choices,
        )
        if self.counts:
            chunk.usage = counted
        return chunk


def _new_id() -> str:
    return f"chatcmpl-{uuid.uuid4().hex}"
