"""Messages to token ids, in one function for training, evaluation and serving.

A chat template renders to trusted scaffold and untrusted content (`sandbox.py`), and only the scaffold makes control
tokens: nothing that a user, a tool or a document says can end a turn or begin one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pellucid.errors import InputError
from pellucid.tokenizer.conversation import Conversation, Ledger, Source, check_messages, check_tools, trace_messages
from pellucid.tokenizer.mask import assistant_mask
from pellucid.tokenizer.sandbox import compile_template
from pellucid.tokenizer.structure import ChatTokenizer, Splitter, encode_pieces


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
    splitter = Splitter(tokenizer, source, rendered.text, ledger)
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


def check_supervised(masks: Iterable[Sequence[bool]]) -> None:
    """InputError if no token of a batch is the assistant's: there would be nothing to learn from."""
    if not any(any(mask) for mask in masks):
        raise InputError(
            "no token of this batch was said by the assistant: check that the conversations hold messages with the "
            "role 'assistant', and that they are not cut off before them"
        )
