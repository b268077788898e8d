"""Tool calls in what a model says: found while the text comes, and text where they are broken.

The forms that published models were trained on:
    Hermes, Qwen   <tool_call>{"name": ..., "arguments": {...}}</tool_call>
    and others     <tool_calls>[{...}, {...}]</tool_calls>, or <TOOLCALL> so
    Llama 3        {"name": ..., "parameters": {...}}, also after <|python_tag|>, several with ; between
    Mistral        [TOOL_CALLS][{"name": ..., "arguments": {...}}, ...] or [TOOL_CALLS]name[ARGS]{...}
Sources: the models' chat templates.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any, Literal, NamedTuple, NoReturn

import regex

NAME = r"[\w.-]{1,64}"

# Where a call may begin, anywhere in the text. Each ends with the first character of its JSON.
ANYWHERE = regex.compile(
    r"(?P<hermes><(?:tool_calls?|TOOLCALL)>\s*[\[{])"
    r"|(?P<llama><\|python_tag\|>\s*\{)"
    r"|(?P<mistral>\[TOOL_CALLS\]\s*(?:(?P<name>" + NAME + r")(?:\[CALL_ID\]\w{1,64})?(?:\[ARGS\])?\s*\{|[\[{]))"
)
BARE = regex.compile(r"\s*(?P<llama>\{)")  # at the very beginning of the answer
NEXT = {  # right after a call: another one, or its closing tag
    "llama": regex.compile(r"\s*;?\s*(?P<llama>\{)"),
    "hermes": regex.compile(r"\s*(?:</(?:tool_calls?|TOOLCALL)>|(?P<hermes>\{))"),
    "mistral": None,
}

OUTSIDE_STRINGS = frozenset('{}[]:,"+-.0123456789eEtrufalsn \t\r\n')  # of JSON


class Call(NamedTuple):
    """A tool's name, and its arguments as the text of a JSON object."""

    name: str
    arguments: str


class ToolParser:
    """Splits an answer into text and calls of the tools with these `names`, as its pieces come.

    However the answer is cut into pieces, the texts joined and the calls in order are the same. A call is handed out
    whole, once its last brace is there; one that is no JSON, or calls a tool that was not offered, stays text. White
    space next to a call is no text. called: whether there has been a call.
    """

    def __init__(self, names: Collection[str]) -> None:
        self.called = False
        self._names = names
        self._held = ""  # what may still become a call, or the beginning of one
        self._space = ""  # white space: text only if text comes after it
        self._after_call = False
        self._out: list[str | Call] = []
        self._next: regex.Pattern[str] | None = BARE
        self._kind = ""
        self._tool: str | None = None  # its name, where it stands before the JSON
        self._json: JsonEnd | None = None

    def push(self, piece: str) -> list[str | Call]:
        """Take the next piece; returns the texts and calls that are certain now."""
        self._held += piece
        return self._take(final=False)

    def finish(self) -> list[str | Call]:
        """The answer has ended: what was held back is text."""
        out = self._take(final=True)
        return out if self._after_call or not self._space else [*out, self._space]

    def _take(self, final: bool) -> list[str | Call]:
        while self._held and (self._within(final) if self._json else self._between(final)):
            pass
        out, self._out = self._out, []
        return out

    def _between(self, final: bool) -> bool:
        """Outside a call. Returns whether something was decided; if not, more text is needed."""
        if self._next is not None:
            match = self._next.match(self._held, partial=not final)
            if match is None:
                self._next = None
            elif match.partial:
                return False
            elif match.lastgroup is None:  # a closing tag: no text
                self._drop(match.end())
                self._next = None
            else:
                self._begin(match)
            return True
        match = ANYWHERE.search(self._held, partial=not final)
        if match is None:
            self._text(len(self._held))
            return False
        if match.start():
            self._text(match.start())
            return True
        if match.partial:
            return False
        self._begin(match)
        return True

    def _begin(self, match: regex.Match[str]) -> None:
        """A call begins where the match ends; from the match's start on the text is held."""
        groups = match.groupdict()
        self._kind = next(kind for kind in NEXT if groups.get(kind) is not None)
        self._tool = groups.get("name")
        self._json = JsonEnd(match.end() - 1)

    def _within(self, final: bool) -> bool:
        """Inside a call: look for its end."""
        assert self._json is not None
        state = self._json.look(self._held)
        if state == "open" and not final:
            return False
        end = len(self._held) if state == "open" else self._json.place
        calls = self._calls(self._held[self._json.start : end]) if state == "closed" else None
        self._json = None
        if calls is None:
            self._text(end)
            self._next = None
        else:
            self.called = self._after_call = True
            self._out += calls
            self._drop(end)
            self._next = NEXT[self._kind]
        return True

    def _calls(self, text: str) -> list[Call] | None:
        """What the JSON of a call asks for; None if it is broken."""
        try:
            value = json.loads(text, parse_constant=_refuse)
        except (ValueError, RecursionError):
            return None
        if self._tool is not None:
            value = {"name": self._tool, "arguments": value}
        found = [as_call(one, self._names) for one in (value if isinstance(value, list) else [value])]
        calls = [call for call in found if call is not None]
        return calls if calls and len(calls) == len(found) else None

    def _text(self, end: int) -> None:
        """The first `end` held characters are text; the white space that they end with may turn out to be none."""
        text = self._space + self._held[:end]
        if self._after_call:
            text = text.lstrip()
        kept = text.rstrip()
        self._space = text[len(kept) :]
        self._held = self._held[end:]
        if kept:
            self._after_call = False
            self._out.append(kept)

    def _drop(self, end: int) -> None:
        """The first `end` held characters are a call, and the white space about them is nothing."""
        self._held, self._space = self._held[end:], ""


class JsonEnd:
    """Finds where the JSON object or list that begins at `start` ends, looking at each character once.

    place: after "closed", just past its last bracket; after "broken", at the first character that no JSON has there.
    """

    def __init__(self, start: int) -> None:
        self.start = self.place = start
        self._depth = 0
        self._in_string = self._escaped = False

    def look(self, text: str) -> Literal["open", "closed", "broken"]:
        """`text`: what was given before, with more at its end."""
        for place in range(self.place, len(text)):
            letter = text[place]
            if self._in_string:
                self._in_string = self._escaped or letter != '"'
                self._escaped = letter == "\\" and not self._escaped
            elif letter not in OUTSIDE_STRINGS:
                self.place = place
                return "broken"
            elif letter == '"':
                self._in_string = True
            else:
                self._depth += (letter in "{[") - (letter in "}]")
                if self._depth == 0:
                    self.place = place + 1
                    return "closed"
        self.place = len(text)
        return "open"


def as_call(value: Any, names: Collection[str]) -> Call | None:
    """The call that a JSON value stands for; None if it is none, or of a tool that was not offered."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or value["name"] not in names:
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):  # JSON in a string, as OpenAI's API has it
        try:
            arguments = json.loads(arguments, parse_constant=_refuse)
        except (ValueError, RecursionError):
            return None
    if not isinstance(arguments, dict):
        return None
    return Call(value["name"], json.dumps(arguments, ensure_ascii=False))


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")
