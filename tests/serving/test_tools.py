"""Tool calls: every form, cut anywhere, and whatever is broken is text (promise I8)."""

from __future__ import annotations

import json
from itertools import pairwise
from os.path import commonprefix

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.serving.tools import Call, JsonEnd, ToolParser
from tests.tokenizer.chats import TEMPLATES, tokenizer_for

NAMES = {"weather", "add"}
WEATHER = Call("weather", '{"town": "Rome"}')
SCHEMA = {"type": "object", "properties": {"town": {"type": "string", "description": "?"}}, "required": ["town"]}
ADD = Call("add", '{"a": 1, "b": [2, {"c": "}"}]}')


def parse(text: str, cuts: list[int] | None = None) -> tuple[str, list[Call], list[str | Call]]:
    """The text and the calls of an answer that comes in pieces, and all that was given, in order."""
    parser = ToolParser(NAMES)
    borders = [0, *sorted(cuts or []), len(text)]
    given = [one for start, end in pairwise(borders) for one in parser.push(text[start:end])] + parser.finish()
    calls = [one for one in given if isinstance(one, Call)]
    assert parser.called == bool(calls)
    return "".join(one for one in given if isinstance(one, str)), calls, given


def as_json(call: Call, arguments: str = "arguments") -> str:
    return json.dumps({"name": call.name, arguments: json.loads(call.arguments)})


FORMS = {
    "hermes": (f"<tool_call>\n{as_json(WEATHER)}\n</tool_call>", "", [WEATHER]),
    "hermes twice": (
        f"<tool_call>{as_json(WEATHER)}</tool_call>\n<tool_call>\n{as_json(ADD)}</tool_call>\n", "", [WEATHER, ADD]
    ),
    "hermes after text": (f"Let me see.\n<tool_call>{as_json(ADD)}</tool_call>", "Let me see.", [ADD]),
    "hermes between texts": (f"One.\n<tool_call>{as_json(ADD)}</tool_call> Two. ", "One.Two. ", [ADD]),
    "hermes, a list": (f"<tool_calls>[{as_json(WEATHER)}, {as_json(ADD)}]</tool_calls>\n", "", [WEATHER, ADD]),
    "hermes, lines": (f"<tool_calls>\n{as_json(WEATHER)}\n{as_json(ADD)}\n</tool_calls>", "", [WEATHER, ADD]),
    "hermes, in capitals": (f"<TOOLCALL>[{as_json(WEATHER)}]</TOOLCALL>", "", [WEATHER]),
    "hermes not closed": (f"<tool_call>\n{as_json(ADD)}\n", "", [ADD]),
    "llama": (as_json(WEATHER, "parameters"), "", [WEATHER]),
    "llama with more": ('{"type": "function", "name": "weather", "parameters": {"town": "Rome"}}', "", [WEATHER]),
    "llama twice": (f"{as_json(WEATHER, 'parameters')}; {as_json(ADD, 'parameters')}", "", [WEATHER, ADD]),
    "llama with tag": (f"<|python_tag|>{as_json(WEATHER, 'parameters')}", "", [WEATHER]),
    "mistral": (f"[TOOL_CALLS] [{as_json(WEATHER)}, {as_json(ADD)}]", "", [WEATHER, ADD]),
    "mistral, names first": (
        f"[TOOL_CALLS]weather[ARGS]{WEATHER.arguments}[TOOL_CALLS]add[ARGS]{ADD.arguments}", "", [WEATHER, ADD]
    ),
    "mistral, with ids": ('[TOOL_CALLS]add[CALL_ID]a1B2[ARGS]{"a": 1}', "", [Call("add", '{"a": 1}')]),
    "arguments as text": ('{"name": "add", "arguments": "{\\"a\\": 1}"}', "", [Call("add", '{"a": 1}')]),
    "without arguments": ('<tool_call>{"name": "add"}</tool_call>', "", [Call("add", "{}")]),
}  # fmt: skip

BROKEN = [
    "Hello, world.",
    "  \n",
    "",
    "a < b, and <tool, and [TOOL",
    "<tool_call>",
    "<tool_call>none</tool_call>",
    '<tool_call>{"name": "add", "arguments": {"a": 1}</tool_call>',
    '<tool_call>{"name": "add", "arguments": {"a": NaN}}</tool_call>',
    '<tool_call>{"name": "add", "arguments": [1]}</tool_call>',
    '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>',
    '<tool_call>{"name": 1}</tool_call>',
    '{"name": "add", "parameters": ',
    '{"answer": 42}',
    "{}",
    'Look: {"name": "add", "parameters": {}}',
    "[TOOL_CALLS][]",
    f"[TOOL_CALLS][{as_json(ADD)}, 1]",
    "[TOOL_CALLS]add[ARGS]1",
    '<|python_tag|>print("hello")',
    "[" * 5000,
    '{"a":' * 5000,
    '<tool_call>{"name": "add", "arguments": ' + "[" * 100_000 + "]" * 100_000 + "}</tool_call>",
]


@pytest.mark.parametrize("form", FORMS)
def test_the_forms_of_published_models(form: str) -> None:
    answer, text, calls = FORMS[form]
    assert parse(answer)[:2] == (text, calls)


@pytest.mark.parametrize("form", FORMS)
def test_cut_anywhere_it_is_the_same(form: str) -> None:
    answer, text, calls = FORMS[form]
    for cut in range(len(answer) + 1):
        assert parse(answer, [cut])[:2] == (text, calls), cut
    assert parse(answer, list(range(len(answer))))[:2] == (text, calls)


# Models whose own template writes a call in one of the forms
WRITERS = [
    "Apriel-1.6-15b-Thinker-fixed",
    "Bielik-11B-v3.0-Instruct",
    "MiMo-VL",
    "MiniMax-M1",
    "Mistral-Small-3.2-24B-Instruct-2506",
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
    "Qwen-Qwen2.5-7B-Instruct",
    "Qwen-Qwen3-0.6B",
    "Reka-Edge",
    "ibm-granite-granite-4.0",
    "ibm-granite-granite-4.1",
    "meta-llama-Llama-3.1-8B-Instruct",
    "meta-llama-Llama-3.3-70B-Instruct",
    "mistralai-Ministral-3-14B-Reasoning-2512",
    "mistralai-Mistral-Nemo-Instruct-2407",
    "unsloth-mistral-Devstral-Small-2507",
]


@pytest.mark.skipif(not TEMPLATES, reason="needs the chat templates that `make references` unpacks")
@pytest.mark.parametrize("name", WRITERS)
def test_what_a_template_writes_is_read_back(name: str) -> None:
    """A call in a conversation, as the model's own template shows it to the model, is the call that was made."""
    tokenizer = tokenizer_for(name)
    tool = {"type": "function", "function": {"name": "weather", "description": "?", "parameters": SCHEMA}}
    function = {"name": "weather", "arguments": {"town": "Rome"}}
    question = {"role": "user", "content": "How is it?"}
    made = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "a1b2c3d4e", "type": "function", "function": function}],
    }
    before = tokenizer.apply_chat_template([question], tools=[tool], add_generation_prompt=True).text
    written = tokenizer.apply_chat_template([question, made], tools=[tool]).text
    answer = written[len(commonprefix([before, written])) :]  # noqa: RUF071 (letter by letter, as is meant)
    assert parse(answer)[1] == [WEATHER]
    assert parse(answer, list(range(len(answer))))[:2] == parse(answer)[:2]


@pytest.mark.parametrize("answer", BROKEN, ids=lambda text: text[:40])
def test_what_is_broken_is_text(answer: str) -> None:
    assert parse(answer)[:2] == (answer, [])


def test_a_broken_call_does_not_hide_a_good_one() -> None:
    broken = '<tool_call>{"name": "add", "arguments": {</tool_call>'
    text, calls, _ = parse(f"{broken}\n<tool_call>{as_json(WEATHER)}</tool_call>")
    assert (text, calls) == (broken, [WEATHER])


PARTS = st.sampled_from(
    [
        "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "add", "weather", ";", " ", "\n",
        "{", "}", "[", "]", '"', "\\", "Hello", as_json(WEATHER), as_json(ADD, "parameters"), '{"a": 1}', "é",
    ]
)  # fmt: skip


@given(st.lists(PARTS, max_size=12), st.data())
def test_however_it_is_cut(parts: list[str], data: st.DataObject) -> None:
    text = "".join(parts)
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=20))
    whole, cut = parse(text), parse(text, cuts)
    assert whole[:2] == cut[:2]
    if not whole[1]:
        assert whole[0] == text


@given(
    st.recursive(
        st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    )
)
def test_the_end_of_json_is_found(value: object) -> None:
    text = json.dumps([value])
    end = JsonEnd(0)
    assert [end.look(text[: place + 1]) for place in range(len(text))] == ["open"] * (len(text) - 1) + ["closed"]
    assert end.place == len(text)
    assert JsonEnd(0).look(text + "more") == "closed"
