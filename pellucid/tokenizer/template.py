"""Messages to token ids, in one function for training, evaluation and serving.

A chat template renders to trusted scaffold and untrusted content (`sandbox.py`), and only the scaffold makes control
tokens: nothing that a user, a tool or a document says can end a turn or begin one.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

from pellucid.errors import InputError
from pellucid.tokenizer.added import AddedToken
from pellucid.tokenizer.conversation import Conversation, Ledger, Source, check_messages, check_tools, trace_messages
from pellucid.tokenizer.mask import assistant_mask
from pellucid.tokenizer.provenance import SCAFFOLD, UNKNOWN, Traced
from pellucid.tokenizer.sandbox import compile_template, literals_of


class ChatTokenizer(Protocol):
    """What a tokenizer has that chats need."""

    @property
    def templates(self) -> Mapping[str, str]: ...
    @property
    def added(self) -> Sequence[AddedToken]: ...
    @property
    def bos_id(self) -> int | None: ...
    @property
    def eos_id(self) -> int | None: ...
    @property
    def pad_id(self) -> int | None: ...
    @property
    def stop_ids(self) -> tuple[int, ...]: ...
    def encode(self, text: str, *, allow_special: bool = False) -> list[int]: ...
    def token_bytes(self, token: int) -> bytes: ...


class Piece(NamedTuple):
    """A stretch of rendered text: one structural token (`id`), or text between them (`id` None)."""

    start: int
    stop: int
    id: int | None


@lru_cache(maxsize=16)
def pattern_of(tokens: frozenset[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or "(?!)")


class Splitter:
    """Finds the structural tokens in a rendered chat: those that the template wrote, none that was talked into it.

    A *structural* token is a control token, or an added token that the template itself writes (`<think>`,
    `<tool_call>`; whitespace is none). Only scaffold makes one, with an exception: a model's own words, in messages of
    the assistant, may hold structural tokens that are no control tokens. Other added tokens (runs of spaces, HTML
    tags) are a way to spell text, and are left to the tokenizer.
    """

    def __init__(self, tokenizer: ChatTokenizer, template: str, ledger: Ledger) -> None:
        written = "\0".join(sorted(literals_of(template)))
        self.tokens = {
            token.content: token
            for token in tokenizer.added
            if token.content and (token.special or (token.content in written and not token.content.isspace()))
        }
        self._control = {token.id for token in self.tokens.values() if token.special}
        self.pattern = pattern_of(frozenset(self.tokens))
        self.forged: list[int] = []  # where the conversation spells a structural token
        self._ledger = ledger

    def is_control(self, token: int | None) -> bool:
        return token in self._control

    def split(self, text: Traced) -> list[Piece]:
        """The whole of `text`, in order."""
        return list(self._split(text, str.__str__(text)))

    def _split(self, text: Traced, plain: str) -> Iterator[Piece]:
        done = position = 0
        while match := self.pattern.search(plain, position):
            start = match.start()
            token = self._longest_allowed(text, start, match.group())
            if token is None:
                self.forged.append(start)
                position = start + 1
                continue
            position = start + len(token.content)
            if token.rstrip:
                position = len(plain) - len(plain[position:].lstrip())
            if token.lstrip:
                start = max(done, len(plain[:start].rstrip()))
            if start > done:
                yield Piece(done, start, None)
            yield Piece(start, position, token.id)
            done = position
        if done < len(plain):
            yield Piece(done, len(plain), None)

    def _longest_allowed(self, text: Traced, start: int, found: str) -> AddedToken | None:
        for length in range(len(found), 0, -1):
            token = self.tokens.get(found[:length])
            if token and self._allowed(token, text.origins[start : start + length]):
                return token
        return None

    def _allowed(self, token: AddedToken, origins: array[int]) -> bool:
        if all(origin == SCAFFOLD for origin in origins):
            return True
        if UNKNOWN in origins:
            raise InputError(
                f"the chat template mixes its own text and the conversation's beyond telling around {token.content!r}: "
                "take that text out of the conversation"
            )
        if token.special:
            return False
        sources = {self._ledger.source(origin) for origin in origins}
        return len(sources) == 1 and all(source is not None and source.own_words for source in sources)


@dataclass
class ChatTokens:
    """A conversation as a model reads it.

    `ids`: the token ids; `text`: what the template rendered. `assistant_mask`: one bool a token, True for what the
    assistant said (`mask.py` says what exactly); worked out when it is first asked for, and an InputError where the
    template defeats it.
    """

    ids: list[int]
    text: str
    _mask: Callable[[], list[bool]] = field(repr=False, compare=False)

    @cached_property
    def assistant_mask(self) -> list[bool]:
        return self._mask()


def apply_chat_template(
    tokenizer: ChatTokenizer,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = False,
    **variables: Any,
) -> ChatTokens:
    """The ids of a conversation, rendered by the model's own template.

    `messages`: dicts with `role` and `content` (a string or a list of text parts), `tool_calls`, `reasoning_content`.
    `tools`: JSON schemas; a model with a template of its own for them ("tool_use") is given that.
    `variables`: what else the template reads (`enable_thinking`, `documents` ...).
    Equal to transformers' `apply_chat_template` wherever the conversation holds no text of structural tokens; such text
    stays text here. No BOS is added to the one that the template writes.
    InputError: no template, a template that is broken or reaches for Python's attributes, a wrong conversation.
    """
    named = "tool_use" if tools is not None and "tool_use" in tokenizer.templates else "default"
    source = tokenizer.templates.get(named)
    if not source:
        raise InputError(
            "this tokenizer has no chat template: use a chat (instruct) model, or put its chat_template.jinja "
            "into the model's folder"
        )
    template = compile_template(source)
    check_messages(messages, source)
    if tools is not None:
        check_tools(tools)
    ledger = Ledger()
    given = {"documents": None, "tools": tools, **variables}
    traced = {name: ledger.trace(value, Source(None, False), f"{name}: the value") for name, value in given.items()}
    conversation = Conversation(
        template, trace_messages(messages, ledger), {**token_names(tokenizer), **traced}, ledger
    )
    rendered = conversation.render(add_generation_prompt=add_generation_prompt)
    splitter = Splitter(tokenizer, source, ledger)
    pieces = splitter.split(rendered.text)
    encoded = encode_pieces(tokenizer, rendered.text, pieces, splitter)
    return ChatTokens(
        [token for ids in encoded for token in ids],
        str.__str__(rendered.text),
        lambda: assistant_mask(conversation, rendered, splitter, pieces, encoded, tokenizer),
    )


def token_names(tokenizer: ChatTokenizer) -> dict[str, str]:
    """`bos_token`, `eos_token`, `pad_token`: what templates call the tokens."""
    texts = {token.id: token.content for token in tokenizer.added}
    named = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id, "pad_token": tokenizer.pad_id}
    return {name: texts[token] for name, token in named.items() if token in texts}


def encode_pieces(
    tokenizer: ChatTokenizer, text: Traced, pieces: Sequence[Piece], splitter: Splitter
) -> list[list[int]]:
    """The ids of each piece.

    A text without forgeries is encoded as a whole, which is what transformers does, and taken apart at the structural
    ids. One with forgeries is encoded piece by piece.
    """
    if not splitter.forged:
        grouped = grouped_ids(tokenizer.encode(str.__str__(text), allow_special=True), pieces, splitter)
        if grouped is not None:
            return grouped
    encoded: list[list[int]] = []
    for piece in pieces:
        if piece.id is not None:
            encoded.append([piece.id])
        else:
            cuts = [cut + 1 for cut in splitter.forged if piece.start <= cut < piece.stop]
            encoded.append(encode_text(tokenizer, str.__str__(text), [piece.start, *cuts, piece.stop], splitter))
    return encoded


def grouped_ids(ids: list[int], pieces: Sequence[Piece], splitter: Splitter) -> list[list[int]] | None:
    """`ids` of the whole text as lists, one a piece; None if the structural ids are not those of the pieces."""
    structural = {token.id for token in splitter.tokens.values()}
    groups: list[list[int]] = []
    position = 0
    for piece in pieces:
        start = position
        if piece.id is not None:
            if ids[position : position + 1] != [piece.id]:
                return None
            position += 1
        else:
            while position < len(ids) and ids[position] not in structural:
                position += 1
        groups.append(ids[start:position])
    return groups if position == len(ids) else None


def encode_text(tokenizer: ChatTokenizer, text: str, borders: Sequence[int], splitter: Splitter) -> list[int]:
    """Plain text: whole where the tokenizer sees no structural token in it, else broken inside each forged one.

    A tokenizer may put a space before a text; text inside a chat has a newline put before it instead, and taken away.
    """
    structural = {token.id for token in splitter.tokens.values()}
    newline = tokenizer.encode("\n")

    def encode(start: int, stop: int) -> list[int]:
        ids = tokenizer.encode("\n" + text[start:stop])
        inside = start > 0 and ids[: len(newline)] == newline
        return ids[len(newline) :] if inside else tokenizer.encode(text[start:stop])

    ids = encode(borders[0], borders[-1])
    if structural.isdisjoint(ids):
        return ids
    ids = [token for start, stop in pairwise(borders) for token in encode(start, stop)]
    if not structural.isdisjoint(ids):
        raise InputError(
            "the tokenizer makes a control token of plain text in this conversation: take that text out of it"
        )
    return ids


def check_supervised(masks: Iterable[Sequence[bool]]) -> None:
    """InputError if no token of a batch is the assistant's: there would be nothing to learn from."""
    if not any(any(mask) for mask in masks):
        raise InputError(
            "no token of this batch was said by the assistant: check that the conversations hold messages with the "
            "role 'assistant', and that they are not cut off before them"
        )
