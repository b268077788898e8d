"""Formats: each brought into its normal form, and every bad record answered with a sentence that says what to do."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.data.formats import FIELDS, read_record
from pellucid.data.records import BadRecord, Kind, Raw, Record
from pellucid.tokenizer.conversation import check_messages

QUESTION, ANSWER = {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ada."}
SYSTEM = {"role": "system", "content": "Be brief."}
TOOLS = [{"type": "function", "function": {"name": "look"}}]


def read(value: Any, wanted: Kind | None = None) -> Record | BadRecord:
    return read_record(Raw("file:7", value), wanted, Counter())


def good(value: Any, wanted: Kind | None = None) -> Record:
    record = read(value, wanted)
    assert isinstance(record, Record), record
    return record


def bad(value: Any, wanted: Kind | None = None) -> BadRecord:
    record = read(value, wanted)
    assert isinstance(record, BadRecord), record
    return record


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ({"messages": [QUESTION, ANSWER], "id": 3}, "messages"),
        ({"messages": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Ada."}]}, "messages"),
        ({"conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Ada."}]}, "sharegpt"),
        ({"conversations": [QUESTION, ANSWER]}, "sharegpt"),
        ({"conversations": [{"from": "User", "value": "Who?"}, {"from": "model", "value": "Ada."}]}, "sharegpt"),
        ({"instruction": "Who?", "input": "", "output": "Ada."}, "alpaca"),
        ({"instruction": "Who?", "output": "Ada.", "text": "Below is an instruction"}, "alpaca"),
        ({"prompt": "Who?", "completion": "Ada."}, "prompt_completion"),
        ({"prompt": [QUESTION], "completion": [ANSWER]}, "prompt_completion"),
    ],
)
def test_conversations(value: Any, name: str) -> None:
    record = good(value, "conversation")
    assert record == Record("file:7", "conversation", name, {"messages": [QUESTION, ANSWER]})


@pytest.mark.parametrize(
    "value",
    [
        {"messages": [SYSTEM, QUESTION, ANSWER]},
        {"conversations": [QUESTION, ANSWER], "system": "Be brief."},
        {"instruction": "Who?", "output": "Ada.", "system": "Be brief."},
        {"prompt": [SYSTEM, QUESTION], "completion": "Ada."},
    ],
)
def test_system(value: Any) -> None:
    assert good(value).content == {"messages": [SYSTEM, QUESTION, ANSWER]}


def test_alpaca_with_input_and_history() -> None:
    value = {"instruction": "Add.", "input": "1 1", "output": "2", "history": [["Hi", "Hello"], ["And?", "Yes"]]}
    said = [message["content"] for message in good(value).content["messages"]]
    assert said == ["Hi", "Hello", "And?", "Yes", "Add.\n\n1 1", "2"]


def test_tools_are_kept_and_calls_understood() -> None:
    call = {"type": "function", "function": {"name": "look", "arguments": {"at": "it"}}}
    expected = [QUESTION, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": "It."}, ANSWER]
    for tools in (TOOLS, json.dumps(TOOLS)):
        assert good({"messages": expected, "tools": tools}).content == {"messages": expected, "tools": TOOLS}
        turns = [
            {"from": "human", "value": "Who?"},
            {"from": "function_call", "value": json.dumps(call["function"])},
            {"from": "observation", "value": "It."},
            {"from": "gpt", "value": "Ada."},
        ]
        assert good({"conversations": turns, "tools": tools}).content == {"messages": expected, "tools": TOOLS}


def test_other_fields_of_messages_stay() -> None:
    thought = {**ANSWER, "reasoning_content": "Hm.", "name": None}
    assert good({"messages": [QUESTION, thought]}).content["messages"][1] == {**ANSWER, "reasoning_content": "Hm."}


def test_an_empty_system_message_is_left_out_and_counted() -> None:
    counts: Counter[str] = Counter()
    value = {"messages": [{"role": "system", "content": ""}, QUESTION, ANSWER]}
    record = read_record(Raw("file:7", value), None, counts)
    assert isinstance(record, Record) and record.content["messages"] == [QUESTION, ANSWER]
    assert counts == {"changed: empty system message left out": 1}


WRONG = {"role": "assistant", "content": "Bob."}


@pytest.mark.parametrize(
    "value",
    [
        {"prompt": "Who?", "chosen": "Ada.", "rejected": "Bob."},
        {"prompt": [QUESTION], "chosen": [ANSWER], "rejected": [WRONG]},
        {"prompt": "Who?", "chosen": [QUESTION, ANSWER], "rejected": [QUESTION, WRONG]},
        {"chosen": [QUESTION, ANSWER], "rejected": [QUESTION, WRONG]},
    ],
)
def test_preferences(value: Any) -> None:
    expected = {"prompt": [QUESTION], "chosen": [ANSWER], "rejected": [WRONG]}
    assert good(value) == Record("file:7", "preference", "preferences", expected)


def test_text() -> None:
    assert good("Once.") == Record("file:7", "text", "text", "Once.") == good({"text": "Once.", "url": "x"})


def test_what_is_wanted_decides_where_the_fields_leave_a_choice() -> None:
    value = {"messages": [QUESTION, ANSWER], "text": "Who? Ada."}
    assert good(value, "text").content == "Who? Ada." and good(value, "conversation").format == "messages"
    assert good(value).format == "messages"


@pytest.mark.parametrize(
    ("value", "reason", "words"),
    [
        (["a"], "unknown format", "the record is a list"),
        ({}, "unknown format", "the fields are none"),
        ({"mesages": []}, "unknown format", "did you mean 'messages'?"),
        ({"text": 3}, "not text", "'text' is a number"),
        ({"text": " \n"}, "empty text", "'text' is empty"),
        ({"text": "a\0"}, "NUL characters", "U+0000"),
        ({"messages": []}, "malformed messages", "'messages' is an empty list"),
        ({"messages": "Who?"}, "malformed messages", "'messages' is text"),
        ({"messages": [QUESTION]}, "no assistant turn", "no message is by the assistant"),
        ({"messages": [QUESTION, "Ada."]}, "malformed message", "message 2 is text"),
        ({"messages": [QUESTION, {"content": "Ada."}]}, "malformed message", "message 2: the field 'role' is missing"),
        ({"messages": [QUESTION, {"role": "asistant", "content": "A"}]}, "unknown role", "did you mean 'assistant'?"),
        ({"messages": [QUESTION, {**ANSWER, "content": " "}]}, "empty turn", "message 2 (assistant) is empty"),
        ({"messages": [{**QUESTION, "content": ""}, ANSWER]}, "empty turn", "message 1 (user) is empty"),
        ({"messages": [QUESTION, {**ANSWER, "content": 3}]}, "malformed message", "'content' is int"),
        ({"messages": [QUESTION, {**ANSWER, "content": "\0"}]}, "NUL characters", "message 2 (assistant) holds"),
        ({"messages": [QUESTION, {**ANSWER, "weight": 0}]}, "weighted message", "not supported"),
        ({"messages": [QUESTION, QUESTION, ANSWER]}, "roles out of order", "message 2 is by 'user', right after"),
        ({"messages": [ANSWER]}, "roles out of order", "message 1 is by 'assistant', the first"),
        ({"messages": [QUESTION, ANSWER, SYSTEM]}, "roles out of order", "message 3 is by 'system'"),
        ({"messages": [QUESTION, ANSWER], "tools": "look"}, "malformed tools", "not JSON"),
        ({"messages": [QUESTION, ANSWER], "tools": {"a": 1}}, "malformed tools", "'tools' is an object"),
        ({"instruction": "Who?", "output": ""}, "empty text", "'output' is empty"),
        ({"instruction": "Who?", "output": "A", "history": [["x"]]}, "malformed history", "'history' 1 is a list"),
        ({"conversations": [{"from": "function_call", "value": "x"}]}, "malformed message", "JSON text such as"),
        ({"prompt": "Who?", "completion": None}, "not text", "'completion' is null or missing"),
        ({"chosen": "Ada.", "rejected": "Bob."}, "no prompt", "no 'prompt'"),
        ({"prompt": "Who?", "chosen": "A", "rejected": "A"}, "chosen equals rejected", "are equal"),
        ({"prompt": "Who?", "ranked": ["A", "B", "A"]}, "chosen equals rejected", "'ranked' 1 and 3 are equal"),
        (
            {"prompt": "Who?", "answers": ["A", "B"], "scores": [10**400, 1]},
            "malformed scores",
            "a finite number for each",
        ),
        ({"prompt": "Who?", "chosen": [QUESTION], "rejected": "A"}, "no assistant turn", "'chosen' does not go on"),
        ({"prompt": [ANSWER], "chosen": "A", "rejected": "B"}, "roles out of order", "of prompt and chosen"),
    ],
)
def test_bad_records(value: Any, reason: str, words: str) -> None:
    error = bad(value)
    assert error.reason == reason and error.exit_status == 2
    assert str(error).startswith("file:7: ") and words in str(error)
    assert "\n" not in str(error) and ("expected" in str(error) or str(error).count(";"))  # and what to do


@pytest.mark.parametrize(
    ("value", "wanted", "words"),
    [
        ("Once.", "conversation", "texts are for pellucid pretrain"),
        ({"messages": [QUESTION, ANSWER]}, "text", "conversations are for pellucid sft"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "conversation", "preferences are for pellucid dpo"),
    ],
)
def test_another_kind_than_is_wanted(value: Any, wanted: Kind, words: str) -> None:
    assert words in str(bad(value, wanted))


scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=4)
contents = st.sampled_from(["", "a", "\0", "[]", '{"name": 1}', None, 1, [], [{"type": "text", "text": "a"}], [{}]])
messages = st.dictionaries(
    st.sampled_from(["role", "content", "from", "value", "tool_calls", "weight", "thinking"]),
    st.sampled_from(["user", "assistant", "system", "tool", "function_call", "human", "gpt"]) | contents | scalars,
    max_size=4,
)
turns = st.builds(
    lambda role, content: {"role": role, "content": content}, st.sampled_from(["user", "assistant"]), contents
)
fields = scalars | contents | messages | st.lists(messages | scalars, max_size=3) | st.lists(turns, max_size=4)
anything = (
    st.dictionaries(st.sampled_from(sorted(FIELDS)), fields, max_size=5) | scalars | st.lists(scalars, max_size=2)
)


@given(anything, st.sampled_from([None, "text", "conversation", "preference"]))
def test_whatever_comes_is_a_good_record_or_one_sentence(value: Any, wanted: Kind | None) -> None:
    record = read(value, wanted)
    if isinstance(record, BadRecord):
        assert str(record).startswith("file:7: ") and "\n" not in str(record)
        return
    assert wanted in (None, record.kind)
    if record.kind == "text":
        assert record.content.strip()
        return
    for name in ("messages",) if record.kind == "conversation" else ("prompt", "chosen", "rejected"):
        if record.content[name] or name != "prompt":
            check_messages(record.content[name], "")
        assert all(message["role"] in ("system", "user", "assistant", "tool") for message in record.content[name])
