"""The formats of records, recognised by their fields, each brought into the one normal form of its kind.

| format | fields | kind |
|---|---|---|
| messages | messages: [{role, content}] | conversation |
| sharegpt | conversations: [{from, value}] | conversation |
| alpaca | instruction, input?, output, system?, history? | conversation |
| prompt_completion | prompt, completion: text or messages | conversation |
| preferences | prompt?, chosen, rejected: text or messages | preference |
| ranking | prompt, ranked: answers, the best first | preference |
| scores | prompt, answers, scores: a number for each, higher is better | preference |
| text | text, or a plain text file | text |

Conversations may have `tools` (a list of JSON schemas, or that as JSON text); other fields are not looked at.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from pellucid.data.messages import Malformed, check_order, json_name, read_messages, text_field
from pellucid.data.records import BadRecord, Kind, Raw, Record
from pellucid.errors import did_you_mean


@dataclass(frozen=True, slots=True)
class Format:
    """A format, the fields that it is recognised by, and what brings it into the normal form."""

    name: str
    kind: Kind
    fields: frozenset[str]
    read: Callable[[Mapping[str, Any], Counter[str]], Any]


def read_record(raw: Raw, wanted: Kind | None, counts: Counter[str]) -> Record | BadRecord:
    """The record in its normal form, of the kind that is `wanted` where its fields leave a choice."""
    if isinstance(raw.value, str):
        raw = Raw(raw.place, {"text": raw.value})
    try:
        found = recognise(raw.value, wanted)
        return Record(raw.place, found.kind, found.name, found.read(raw.value, counts))
    except Malformed as error:
        return BadRecord(raw.place, error.reason, error.sentence)


def recognise(value: Any, wanted: Kind | None) -> Format:
    """The format of a value. Raises Malformed where it has none, or none of the wanted kind."""
    if not isinstance(value, dict):
        raise Malformed(
            "unknown format", f"the record is {json_name(value)}; expected an object such as {{'messages': [...]}}"
        )
    known = [candidate for candidate in FORMATS if candidate.fields <= value.keys()]
    if not known:
        seen = ", ".join(map(repr, value)) or "none"
        near = next(filter(None, (did_you_mean(str(field), FIELDS) for field in value)), "")
        expected = "; ".join(f"{' and '.join(sorted(one.fields))} ({one.name})" for one in FORMATS)
        raise Malformed("unknown format", f"the fields are {seen}{near}; expected {expected}; rename the fields")
    if wanted is None:
        return known[0]
    for candidate in known:
        if candidate.kind == wanted:
            return candidate
    found, needed = NAMES[known[0].kind], NAMES[wanted]
    raise Malformed(
        f"{found} where {needed} are wanted",
        f"the record is in the format {known[0].name}; expected {needed}; {found} are for {COMMANDS[known[0].kind]}",
    )


def from_text(record: Mapping[str, Any], _: Counter[str]) -> str:
    return text_field(record, "text")


def from_messages(record: Mapping[str, Any], counts: Counter[str]) -> dict[str, Any]:
    return conversation(record, record["messages"], counts)


def from_sharegpt(record: Mapping[str, Any], counts: Counter[str]) -> dict[str, Any]:
    return conversation(record, record["conversations"], counts)


def from_alpaca(record: Mapping[str, Any], counts: Counter[str]) -> dict[str, Any]:
    """Instruction and input make the user's turn (Taori et al. 2023), after the turns of `history`."""
    turns = [("user", text_field(record, "instruction"))]
    if record.get("input"):
        turns = [("user", f"{turns[0][1]}\n\n{text_field(record, 'input')}")]
    turns.append(("assistant", text_field(record, "output")))
    history = record.get("history") or []
    for number, pair in enumerate(history if isinstance(history, list) else [history], 1):
        if not isinstance(pair, list) or len(pair) != 2:
            raise Malformed(
                "malformed history",
                f"'history' {number} is {json_name(pair)}; expected a list of [instruction, output]",
            )
        turns[-2:-2] = zip(("user", "assistant"), pair, strict=True)
    return conversation(record, [{"role": role, "content": content} for role, content in turns], counts)


def from_prompt_completion(record: Mapping[str, Any], counts: Counter[str]) -> dict[str, Any]:
    return conversation(record, [*turns(record, "prompt", "user"), *turns(record, "completion", "assistant")], counts)


def conversation(record: Mapping[str, Any], messages: Any, counts: Counter[str]) -> dict[str, Any]:
    """The normal form, with the record's own `system` and `tools`. Raises Malformed where it cannot be trained on."""
    if record.get("system") and isinstance(messages, list):
        messages = [{"role": "system", "content": text_field(record, "system")}, *messages]
    normal = read_messages(messages, counts)
    check_order(normal)
    if not any(message["role"] == "assistant" for message in normal):
        raise Malformed(
            "no assistant turn",
            "no message is by the assistant, so there is nothing to learn; "
            "expected an answer with the role 'assistant'; add one or remove the record",
        )
    return {"messages": normal, **tools_of(record)}


def from_preferences(record: Mapping[str, Any], counts: Counter[str]) -> dict[str, Any]:
    """The prompt apart from both answers; where it is not given apart, it is what the two begin with."""
    chosen, rejected = (turns(record, field, "assistant") for field in ("chosen", "rejected"))
    if record.get("prompt") is None:
        if isinstance(record["chosen"], str) or isinstance(record["rejected"], str):
            raise Malformed("no prompt", "there is no 'prompt' beside 'chosen' and 'rejected'; add the field")
        same = next((n for n, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
        prompt = chosen[: min(len(chosen), len(rejected)) - 1 if same is None else same]
    else:
        prompt = turns(record, "prompt", "user")
    if record.get("system"):
        prompt = [{"role": "system", "content": text_field(record, "system")}, *prompt]
    normal = read_messages(prompt, counts, "message", "prompt")
    answers = {
        field: answer(normal, messages, field, counts)
        for field, messages in (("chosen", chosen), ("rejected", rejected))
    }
    if answers["chosen"] == answers["rejected"]:
        raise Malformed("chosen equals rejected", "'chosen' and 'rejected' are equal; remove the record")
    return {"prompt": normal, **answers, **tools_of(record)}


def from_ranking(record: Mapping[str, Any], counts: Counter[str]) -> dict[str, Any]:
    """k answers, the best first; the scores say no more than that."""
    answers = record["ranked"]
    places = range(len(answers), 0, -1) if isinstance(answers, list) else ()
    return scored(record, answers, "ranked", list(map(float, places)), counts)


def from_scores(record: Mapping[str, Any], counts: Counter[str]) -> dict[str, Any]:
    """k answers, each with a number; equal numbers say that neither is better."""
    answers, scores = record["answers"], record["scores"]
    numbers = isinstance(scores, list) and all(map(is_number, scores))
    if not numbers or not isinstance(answers, list) or len(scores) != len(answers):
        raise Malformed("malformed scores", "'scores' does not have a finite number for each of 'answers'; mend it")
    return scored(record, answers, "answers", list(map(float, scores)), counts)


def is_number(value: Any) -> bool:
    """Whether it is a finite number that a float holds."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def scored(
    record: Mapping[str, Any], answers: Any, field: str, scores: list[float], counts: Counter[str]
) -> dict[str, Any]:
    """The normal form of k answers: {"prompt", "answers": lists of messages, "scores", "tools"?}."""
    if not isinstance(answers, list) or len(set(scores)) < 2:
        raise Malformed(
            "no ranking", f"'{field}' does not hold two answers of which one is better; give more, or remove the record"
        )
    prompt = turns(record, "prompt", "user")
    if record.get("system"):
        prompt = [{"role": "system", "content": text_field(record, "system")}, *prompt]
    normal = read_messages(prompt, counts, "message", "prompt")
    read = []
    for number, value in enumerate(answers, 1):
        messages = value if isinstance(value, list) else [{"role": "assistant", "content": value}]
        read.append(answer(normal, messages, f"{field} {number}", counts))
    for i, j in combinations(range(len(read)), 2):
        if read[i] == read[j] and scores[i] != scores[j]:
            raise Malformed(
                "chosen equals rejected",
                f"'{field}' {i + 1} and {j + 1} are equal, and one is said to be better; remove one of them",
            )
    return {"prompt": normal, "answers": read, "scores": scores, **tools_of(record)}


def answer(prompt: list[dict[str, Any]], messages: Any, field: str, counts: Counter[str]) -> list[dict[str, Any]]:
    """An answer to the prompt, in its normal form, without the prompt where it is repeated."""
    read = read_messages(messages, counts, f"{field}, message", field)
    read = read[len(prompt) :] if read[: len(prompt)] == prompt else read
    if not read or read[0]["role"] != "assistant":
        raise Malformed(
            "no assistant turn", f"'{field}' does not go on after the prompt with a message by 'assistant'; add it"
        )
    check_order([*prompt, *read], f" of prompt and {field}")
    return read


def turns(record: Mapping[str, Any], field: str, role: str) -> list[Any]:
    """A field that is either messages or the text of one message by `role`."""
    value = record[field]
    return value if isinstance(value, list) else [{"role": role, "content": text_field(record, field)}]


def tools_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """`tools` as a list, from JSON text too; nothing where there are none."""
    tools = record.get("tools")
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except ValueError as error:
            raise Malformed("malformed tools", f"'tools' is text, but not JSON ({error}); mend it") from None
    if not tools:
        return {}
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise Malformed("malformed tools", f"'tools' is {json_name(tools)}; expected a list of objects, JSON schemas")
    return {"tools": tools}


FORMATS = (
    Format("preferences", "preference", frozenset({"chosen", "rejected"}), from_preferences),
    Format("ranking", "preference", frozenset({"prompt", "ranked"}), from_ranking),
    Format("scores", "preference", frozenset({"prompt", "answers", "scores"}), from_scores),
    Format("messages", "conversation", frozenset({"messages"}), from_messages),
    Format("sharegpt", "conversation", frozenset({"conversations"}), from_sharegpt),
    Format("alpaca", "conversation", frozenset({"instruction", "output"}), from_alpaca),
    Format("prompt_completion", "conversation", frozenset({"prompt", "completion"}), from_prompt_completion),
    Format("text", "text", frozenset({"text"}), from_text),
)
FIELDS = frozenset().union(*(one.fields for one in FORMATS), {"prompt", "input", "system", "history", "tools"})
NAMES: dict[Kind, str] = {"text": "texts", "conversation": "conversations", "preference": "preferences"}
COMMANDS: dict[Kind, str] = {
    "text": "pellucid pretrain",
    "conversation": "pellucid sft",
    "preference": "pellucid dpo",
}
