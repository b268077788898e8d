"""Prompts, and several answers of a model to each, among which somebody or something is to choose."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pellucid.data.messages import Malformed, check_order, read_messages
from pellucid.data.order import random_number
from pellucid.data.records import BadRecord
from pellucid.data.sources import File, find_files, read_raw
from pellucid.errors import InputError
from pellucid.inference.engine import Engine
from pellucid.inference.output import Outputs
from pellucid.inference.params import SamplingParams
from pellucid.tokenizer.tokenizer import Tokenizer

EXPECTED = 'expected text, {"prompt": ...} or {"messages": [...]} that the user has said last'


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation that waits for the assistant. columns: other fields of its record, for rules that judge answers.

    place: where it stands, for messages.
    """

    messages: tuple[Mapping[str, Any], ...]
    columns: Mapping[str, Any] = field(default_factory=dict)
    place: str = "the prompt"

    @property
    def key(self) -> str:
        """Equal messages, and no others, have the same key."""
        return json.dumps(self.messages, sort_keys=True, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Candidates:
    """A prompt and answers to it, no two of them equal."""

    prompt: Prompt
    answers: tuple[str, ...]

    def conversation(self, number: int) -> list[Mapping[str, Any]]:
        """The prompt with one of the answers."""
        return [*self.prompt.messages, {"role": "assistant", "content": self.answers[number]}]


def read_prompts(path: str | Path, counts: Counter[str] | None = None) -> list[Prompt]:
    """The prompts of a JSON Lines, text or table file: each once. counts: how many were there twice.

    Raises `InputError` that names the file and the line.
    """
    found: dict[str, Prompt] = {}
    for file in find_files([path]):
        for prompt in prompts_of(file):
            if prompt.key in found and counts is not None:
                counts["there twice"] += 1
            found.setdefault(prompt.key, prompt)
    return list(found.values())


def prompts_of(file: File) -> Iterator[Prompt]:
    """Every prompt of a file, in its order. Plain text has one a line."""
    if file.path.suffix == ".txt":
        try:
            content = file.path.read_text("utf-8")
        except UnicodeDecodeError as error:
            row = error.object.count(b"\n", 0, error.start) + 1
            raise InputError(f"{file.name}:{row}: this is no UTF-8 text: save the file as UTF-8") from None
        for number, line in enumerate(content.split("\n"), 1):
            if line.strip():
                yield prompt_of(line.strip(), f"{file.name}:{number}")
        return
    for raw in read_raw(file, Counter()):
        if isinstance(raw, BadRecord):
            raise raw
        yield prompt_of(raw.value, raw.place)


def prompt_of(value: Any, place: str) -> Prompt:
    """A record as a prompt. Raises `InputError` by its place."""
    columns: dict[str, Any] = {}
    if isinstance(value, dict):
        columns = {name: content for name, content in value.items() if name not in ("prompt", "messages")}
        value = value.get("prompt", value.get("messages"))
    if isinstance(value, str) and value.strip():
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list):
        raise InputError(f"{place}: this is no prompt; {EXPECTED}; mend or remove it")
    try:
        messages = read_messages(value, Counter(), "message", "prompt")
        check_order(messages)
    except Malformed as error:
        raise InputError(f"{place}: {error.sentence}") from None
    if not messages or messages[-1]["role"] == "assistant":
        raise InputError(f"{place}: the assistant has said the last word already; {EXPECTED}; take its answer away")
    return Prompt(tuple(messages), columns, place)


def candidates(
    engine: Engine,
    prompts: Sequence[Prompt],
    count: int,
    params: SamplingParams,
    seed: int = 0,
    *,
    whole: bool = True,
    counts: Counter[str] | None = None,
) -> list[Candidates]:
    """`count` answers to each prompt, drawn by `params`; equal ones and those that no data may hold (empty, or with the
    character NUL) are left out, and those that `max_tokens` or the context cut off, unless not only `whole` ones count.

    counts: is given how many were "cut off".

    What is drawn for a prompt is a function of it, of `params` and of `seed`, whatever else is asked. Raises
    `InputError` by its place for a prompt that the context does not hold or the chat template refuses.
    """
    with Outputs(engine) as outputs:
        for prompt in prompts:
            drawn = params.with_({"n": count, "seed": random_number(2**31, "candidates", seed, prompt.key)})
            outputs.add(prompt_ids(engine, prompt), drawn, in_chat=True)
        answered = list(outputs.answered())
    cut = sum(answer.finish_reason == "length" for one in answered for answer in one.answers)
    if counts is not None:
        counts["cut off"] += cut
    texts = [
        [
            answer.text.strip()
            for answer in one.answers
            if "\0" not in answer.text and not (whole and answer.finish_reason == "length")
        ]
        for one in answered
    ]
    return [
        Candidates(prompt, tuple(dict.fromkeys(filter(None, several))))
        for prompt, several in zip(prompts, texts, strict=True)
    ]


def prompt_ids(engine: Engine, prompt: Prompt) -> list[int]:
    """The prompt as the chat template writes it. Raises `InputError` by its place."""
    ids = generation_ids(engine.tokenizer, prompt)
    if len(ids) >= engine.max_length:
        raise InputError(
            f"{prompt.place}: the prompt has {len(ids)} tokens and the context holds {engine.max_length}, the answer "
            "included; make it shorter"
        )
    return ids


def generation_ids(tokenizer: Tokenizer, prompt: Prompt) -> list[int]:
    """The prompt through the assistant's first words of form."""
    try:
        return tokenizer.apply_chat_template(prompt.messages, add_generation_prompt=True).ids
    except InputError as error:
        raise InputError(f"{prompt.place}: {error}") from None
