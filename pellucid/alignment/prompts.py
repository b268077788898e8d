"""The prompts that answers are drawn for, and what else their records say, which rewards are given.

A record is {"prompt": text or messages, ...}, with any other fields; or a conversation, of which the turns before the
assistant's first are the prompt, and what it says there is the field `answer`.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pellucid.data.formats import recognise
from pellucid.data.messages import Malformed, read_messages
from pellucid.data.order import permutation
from pellucid.data.records import BadRecord, Raw
from pellucid.data.sources import find_files, read_raw
from pellucid.errors import InputError
from pellucid.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Prompt:
    """ids: as the policy reads it. given: the text or the messages that rewards get. columns: the other fields."""

    place: str
    ids: tuple[int, ...]
    given: Any
    columns: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Prompts:
    """Prompts in an order that is a pure function of (seed, number). counts: of records, by what became of them."""

    prompts: Sequence[Prompt]
    counts: Counter[str]
    content: str
    seed: int

    def __len__(self) -> int:
        return len(self.prompts)

    def read(self, numbers: Iterable[int]) -> list[Prompt]:
        """By their running number: epoch * len(self) + place in the epoch (promise D1)."""
        found = []
        for number in numbers:
            epoch, place = divmod(number, len(self.prompts))
            order = permutation(len(self.prompts), "prompts", self.seed, epoch)
            found.append(self.prompts[int(order(np.array([place]))[0])])
        return found


def read_prompts(
    names: Iterable[str], tokenizer: Tokenizer, *, chat: bool, longest: int, too_long: Literal["error", "drop"],
    skip_bad: bool, seed: int,
) -> Prompts:  # fmt: skip
    """The prompts of files, folders and data sets. chat: through the chat template, else text as it stands.

    longest: tokens of a prompt, beside which an answer has room. Raises `InputError`, with file and line, for a record
    that is no prompt, and for a prompt that is too long.
    """
    prompts: list[Prompt] = []
    counts: Counter[str] = Counter()
    digest = hashlib.sha256()
    names = list(names)
    for file in find_files(names):
        for raw in read_raw(file, counts):
            try:
                prompt = _prompt(raw, tokenizer, chat)
            except (Malformed, InputError) as error:
                bad = error if isinstance(error, BadRecord) else BadRecord(raw.place, "no prompt", str(error))
                if not skip_bad:
                    raise InputError(f"{bad}; or leave such records out, counted, with data.skip_bad=true") from None
                counts[f"dropped: {bad.reason}"] += 1
                continue
            if len(prompt.ids) > longest:
                if too_long == "error":
                    raise InputError(
                        f"{prompt.place}: the prompt has {len(prompt.ids)} tokens, and data.context less "
                        f"rollouts.max_tokens leaves {longest}: raise data.context, or choose data.too_long=drop"
                    )
                counts["dropped: prompt too long"] += 1
                continue
            prompts.append(prompt)
            digest.update(json.dumps([prompt.ids, prompt.columns], sort_keys=True, default=str).encode())
    if not prompts:
        raise InputError(f"{', '.join(names)}: no prompt is left to learn from")
    counts["kept: prompts"] = len(prompts)
    return Prompts(prompts, counts, digest.hexdigest(), seed)


def _prompt(raw: Raw | BadRecord, tokenizer: Tokenizer, chat: bool) -> Prompt:
    if isinstance(raw, BadRecord):
        raise raw
    record = {"prompt": raw.value} if isinstance(raw.value, str) else raw.value
    if not isinstance(record, dict) or "prompt" not in record:
        record = _from_conversation(record)
    given = record["prompt"]
    columns = {name: value for name, value in record.items() if name != "prompt"}
    if not isinstance(given, str):
        read = read_messages(given, Counter(), "message", "prompt")
        if not chat:
            raise Malformed("messages", "the prompt is messages, and data.chat=false wants text; set data.chat=true")
        return Prompt(raw.place, _chat_ids(tokenizer, read), given, columns)
    if not given.strip():
        raise Malformed("empty prompt", "'prompt' is empty; give a text, or messages")
    if chat:
        return Prompt(raw.place, _chat_ids(tokenizer, [{"role": "user", "content": given}]), given, columns)
    return Prompt(raw.place, tuple(tokenizer.encode(given, add_bos=tokenizer.adds_bos)), given, columns)


def _chat_ids(tokenizer: Tokenizer, messages: list[dict[str, Any]]) -> tuple[int, ...]:
    return tuple(tokenizer.apply_chat_template(messages, add_generation_prompt=True).ids)


def _from_conversation(record: Any) -> dict[str, Any]:
    """A conversation's turns before the assistant's first one, and that as `answer`."""
    if not isinstance(record, dict) or not ({"messages", "conversations"} & record.keys()):
        seen = ", ".join(map(repr, record)) if isinstance(record, dict) else "no object"
        raise Malformed("no prompt", f"the fields are {seen}; expected 'prompt' (text or messages) or 'messages'")
    messages = recognise(record, "conversation").read(record, Counter())["messages"]
    first = next(number for number, message in enumerate(messages) if message["role"] == "assistant")
    if not first:
        raise Malformed("no prompt", "the conversation begins with the assistant; put a user's turn before it")
    others = {name: value for name, value in record.items() if name not in ("messages", "conversations")}
    return {"answer": messages[first]["content"], **others, "prompt": messages[:first]}
