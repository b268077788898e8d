"""The messages of a conversation: roles and contents in their normal form, checked for what training needs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pellucid.data.records import CHANGED
from pellucid.errors import InputError, did_you_mean
from pellucid.tokenizer.conversation import ROLES, check_message

# What data sets call the roles -> what chat templates call them.
ALIASES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "function_call": "assistant",
    "tool_call": "assistant",
}
_CALLS = ("function_call", "tool_call")
_REASONING = ("reasoning_content", "thinking", "reasoning")
# After whom a role may speak. None: at the beginning.
_AFTER: dict[str, set[str | None]] = {
    "system": {None},
    "developer": {None, "system"},
    "user": {None, "system", "developer", "assistant"},
    "assistant": {"user", "tool"},
    "tool": {"assistant", "tool"},
}


class Malformed(Exception):
    """What is wrong with a record: a short `reason` to count it under, and a sentence without the place."""

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason
        self.sentence = sentence


def read_messages(
    messages: Any, counts: Counter[str], called: str = "message", field: str = "messages"
) -> list[dict[str, Any]]:
    """The messages with `role` and `content` (ShareGPT's `from` and `value` too), each checked by itself."""
    if not isinstance(messages, list) or not messages:
        seen = "an empty list" if messages == [] else json_name(messages)
        raise Malformed("malformed messages", f"'{field}' is {seen}; expected a list of messages; mend the record")
    read = []
    for number, message in enumerate(messages, 1):
        normal = read_message(message, f"{called} {number}")
        if normal["role"] in ("system", "developer") and is_empty(normal):
            counts[f"{CHANGED}empty system message left out"] += 1
            continue
        check_content(normal, f"{called} {number}")
        read.append(normal)
    return read


def read_message(message: Any, name: str) -> dict[str, Any]:
    """A message in the form of chat templates. Raises Malformed where it is none."""
    if not isinstance(message, Mapping):
        expected = "an object with 'role' and 'content'"
        raise Malformed("malformed message", f"{name} is {json_name(message)}; expected {expected}; mend the record")
    normal = {key: value for key, value in message.items() if value is not None}
    for theirs, ours in (("from", "role"), ("value", "content")):
        if theirs in normal and ours not in normal:
            normal[ours] = normal.pop(theirs)
    role = normal.get("role")
    if isinstance(role, str):
        normal["role"] = ALIASES.get(role.lower(), role.lower())
        if normal["role"] not in ROLES:
            near, known = did_you_mean(role, ROLES | ALIASES.keys()), ", ".join(sorted(ROLES))
            raise Malformed("unknown role", f"{name} has the role {role!r}{near}; expected {known}; mend it")
        if role.lower() in _CALLS and "tool_calls" not in normal:
            normal["tool_calls"] = [call_of(normal.pop("content", None), name)]
    if normal.get("weight", 1) != 1 or normal.get("train", True) is not True:
        raise Malformed(
            "weighted message",
            f"{name} is to be learnt from less than others ('weight' or 'train'), which is not supported; "
            "expected every assistant message to count; remove the field or the record",
        )
    try:
        check_message(normal, name, "")
    except InputError as error:
        raise Malformed("malformed message", f"{error}; mend the record") from None
    return normal


def call_of(text: Any, name: str) -> dict[str, Any]:
    """The call that ShareGPT's role `function_call` writes as JSON text."""
    try:
        call = json.loads(text)
        return {"type": "function", "function": {"name": call["name"], "arguments": call.get("arguments", {})}}
    except (TypeError, ValueError, KeyError, AttributeError):
        expected = 'JSON text such as {"name": "...", "arguments": {}}'
        raise Malformed("malformed message", f"{name} is a function call; expected {expected}; mend it") from None


def is_empty(message: Mapping[str, Any]) -> bool:
    return not text_of(message).strip() and not message.get("tool_calls")


def text_of(message: Mapping[str, Any]) -> str:
    """What a message says, its reasoning included."""
    content = message.get("content")
    parts = [content] if isinstance(content, str) else [part["text"] for part in content or ()]
    return "".join([*parts, *(str(message[name]) for name in _REASONING if message.get(name))])


def check_content(message: Mapping[str, Any], name: str) -> None:
    if is_empty(message) and message["role"] != "tool":  # a tool may well answer nothing
        raise Malformed(
            "empty turn", f"{name} ({message['role']}) is empty; expected text; fill it or remove the record"
        )
    check_text(text_of(message), f"{name} ({message['role']})")


def check_text(text: str, name: str) -> None:
    if "\0" in text:
        raise Malformed("NUL characters", f"{name} holds the character NUL (U+0000); expected text; remove it")


def check_order(messages: Sequence[Mapping[str, Any]], name: str = "") -> None:
    """Raises Malformed for roles that do not take turns: system first, then user and assistant, tools between."""
    before: str | None = None
    for number, message in enumerate(messages, 1):
        role = message["role"]
        if before not in _AFTER[role]:
            where = f"right after one by {before!r}" if before else "the first"
            raise Malformed(
                "roles out of order",
                f"message {number}{name} is by {role!r}, {where}; expected system (if any), then user and "
                "assistant in turn, tool after assistant; mend the roles or join the messages",
            )
        before = role


def text_field(record: Mapping[str, Any], field: str) -> str:
    """A field that must be text with something in it."""
    value = record.get(field)
    if not isinstance(value, str):
        raise Malformed("not text", f"'{field}' is {json_name(value)}; expected text; mend or remove the record")
    if not value.strip():
        raise Malformed("empty text", f"'{field}' is empty; expected text; fill it or remove the record")
    check_text(value, f"'{field}'")
    return value


def json_name(value: Any) -> str:
    """What JSON calls a value."""
    if value is None:
        return "null or missing"
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)
