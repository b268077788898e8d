"""A conversation as the caller gives it: checked, its characters numbered, and put before the chat template."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jinja2

from pellucid.errors import InputError, did_you_mean
from pellucid.tokenizer.provenance import SCAFFOLD, Traced
from pellucid.tokenizer.sandbox import RENDERING_ERRORS, Rendered, render, roles_in

ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
OWN_WORDS = frozenset({"content", "reasoning_content", "thinking", "reasoning"})  # what a model says, of its messages
REASONING_NAMES = ("reasoning_content", "thinking", "reasoning")


class Source(NamedTuple):
    """A string of the conversation: the message it is in (None: a tool, a variable), and whether a model said it."""

    message: int | None
    own_words: bool


class Ledger:
    """Numbers every character of a conversation's strings, and knows whose it is."""

    def __init__(self) -> None:
        self._starts: list[int] = [0]
        self._sources: list[Source | None] = [None]
        self._next = 1

    def trace(self, value: Any, source: Source, name: str) -> Any:
        """`value`, called `name`, with its strings traced, keys included. InputError if it is not what JSON holds."""
        if isinstance(value, str):
            origins = array("q", range(self._next, self._next + len(value)))
            if value:
                self._starts.append(self._next)
                self._sources.append(source)
                self._next += len(value)
            return Traced(str.__str__(value), origins)
        if isinstance(value, Mapping):
            return {self.trace(key, source, name): self.trace(item, source, name) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.trace(item, source, name) for item in value]
        if value is None or isinstance(value, bool | int | float):
            return value
        raise InputError(f"{name} holds {type(value).__name__}; expected text, numbers, lists and dicts")

    def span(self, message: int) -> tuple[int, int]:
        """The origins of a message's characters: from the first up to, not including, the second."""
        numbers = [number for number, source in enumerate(self._sources) if source and source.message == message]
        if not numbers:
            return 0, 0
        last = numbers[-1] + 1
        return self._starts[numbers[0]], self._starts[last] if last < len(self._starts) else self._next

    def source(self, origin: int) -> Source | None:
        """None for the scaffold, and for text of unknown origin."""
        return None if origin <= SCAFFOLD else self._sources[bisect_right(self._starts, origin) - 1]


def check_messages(messages: Any, template: str) -> None:
    """InputError, naming the message by its number, where `messages` are no conversation."""
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise InputError(f"messages: expected a list of dicts with 'role' and 'content', got {type(messages).__name__}")
    if not messages:
        raise InputError("messages: the list is empty; give at least one message")
    for number, message in enumerate(messages, 1):
        check_message(message, f"message {number}", template)


def check_message(message: Any, name: str, template: str) -> None:
    if not isinstance(message, Mapping):
        raise InputError(f"{name}: expected a dict with 'role' and 'content', got {type(message).__name__}")
    if "role" not in message:
        raise InputError(f"{name}: the field 'role' is missing")
    role = message["role"]
    known = ROLES | roles_in(template)
    if not isinstance(role, str) or role not in known:
        hint = did_you_mean(str(role), known)
        raise InputError(f"{name}: there is no role {role!r}{hint}; the chat template knows {', '.join(sorted(known))}")
    content = message.get("content")
    if isinstance(content, list | tuple):
        for part in content:
            check_part(part, name)
    elif content is not None and not isinstance(content, str):
        raise InputError(f"{name}: 'content' is {type(content).__name__}; expected a string or a list of text parts")
    calls = message.get("tool_calls")
    if calls is not None:
        check_tool_calls(calls, name)
    if content is None and not calls and not any(message.get(key) for key in REASONING_NAMES):
        raise InputError(f"{name}: the field 'content' is missing")


def check_part(part: Any, name: str) -> None:
    if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
        raise InputError(f"{name}: a part of 'content' is a dict with 'type' and 'text'")
    if part["type"] != "text":
        raise InputError(f"{name}: content of type {part['type']!r} is not supported; only 'text' is")
    if not isinstance(part.get("text"), str):
        raise InputError(f"{name}: a part of type 'text' needs a string 'text'")


def check_tool_calls(calls: Any, name: str) -> None:
    if not isinstance(calls, list | tuple):
        raise InputError(f"{name}: 'tool_calls' is {type(calls).__name__}; expected a list")
    for call in calls:
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise InputError(f"{name}: a tool call needs a 'function' with a 'name' and 'arguments'")
        if not isinstance(function.get("arguments", {}), Mapping | str):
            raise InputError(f"{name}: the arguments of {function['name']!r} are neither a dict nor JSON text")


def check_tools(tools: Any) -> None:
    if not isinstance(tools, list | tuple) or not all(isinstance(tool, Mapping) for tool in tools):
        raise InputError("tools: expected a list of dicts, each a JSON schema with a 'function'")


def trace_messages(messages: Sequence[Mapping[str, Any]], ledger: Ledger) -> list[dict[str, Any]]:
    """The messages for the template: text traced, roles (checked, so no danger) plain, reasoning under its names."""
    traced = []
    for number, message in enumerate(messages):
        copy: dict[str, Any] = {}
        for key, value in message.items():
            own = message["role"] == "assistant" and key in OWN_WORDS
            name = f"message {number + 1}: {key!r}"
            traced_key = ledger.trace(str(key), Source(number, False), name)
            copy[traced_key] = str.__str__(value) if key == "role" else ledger.trace(value, Source(number, own), name)
        reasoning = next((copy[name] for name in REASONING_NAMES if copy.get(name) is not None), None)
        if reasoning is not None:  # templates read it under either name, as transformers offers it
            copy = {"thinking": reasoning, **copy, "reasoning_content": reasoning}
        traced.append(copy)
    return traced


@dataclass(frozen=True)
class Conversation:
    """A checked conversation and the template that renders it."""

    template: jinja2.Template
    messages: list[dict[str, Any]]
    variables: dict[str, Any]
    ledger: Ledger

    def render(self, count: int | None = None, *, add_generation_prompt: bool = False) -> Rendered:
        """The text of the first `count` messages (None: of all). InputError where the template refuses them."""
        variables = {**self.variables, "add_generation_prompt": add_generation_prompt}
        try:
            return render(self.template, {"messages": self.messages[:count], **variables})
        except RENDERING_ERRORS as error:
            number = self._first_refused(str(error), variables) if count is None else count
            raise InputError(f"message {number}: the chat template refuses the conversation: {said(error)}") from error

    def opening(self) -> str:
        """The generation prompt as it stands after a user's message; "" if that cannot be told."""
        user = [{"role": "user", "content": "?"}]
        try:
            before, prompt = (
                str.__str__(
                    render(self.template, {**self.variables, "messages": user, "add_generation_prompt": wanted}).text
                )
                for wanted in (False, True)
            )
        except RENDERING_ERRORS:
            return ""
        return prompt[len(before) :] if prompt.startswith(before) else ""

    def _first_refused(self, complaint: str, variables: dict[str, Any]) -> int:
        """The number of the message at which the template first makes this complaint."""
        for count in range(1, len(self.messages)):
            try:
                render(self.template, {"messages": self.messages[:count], **variables})
            except RENDERING_ERRORS as error:
                if str(error) == complaint:
                    return count
        return len(self.messages)


def said(error: Exception) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return text if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: {text}"
