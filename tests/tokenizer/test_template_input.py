"""Conversations and templates that are wrong: one sentence each, naming the message by its number."""

from __future__ import annotations

from typing import Any

import pytest

from pellucid.errors import InputError
from tests.tokenizer.chats import OTHER, SAID, SYSTEM, TOOLS, USER, tokenizer_for, tokenizer_with

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def complaint(template: str, messages: Any, **variables: Any) -> str:
    with pytest.raises(InputError) as caught:
        tokenizer_with(template).apply_chat_template(messages, **variables)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([], "messages: the list is empty"),
        ("Hello", "messages: expected a list of dicts"),
        (None, "messages: expected a list of dicts"),
        ({"role": "user", "content": "Hi"}, "messages: expected a list of dicts"),
        ([USER, "Hello"], "message 2: expected a dict"),
        ([USER, None], "message 2: expected a dict"),
        ([{"content": "Hi"}], "message 1: the field 'role' is missing"),
        ([{"role": None, "content": "Hi"}], "message 1: there is no role None"),
        ([{"role": 3, "content": "Hi"}], "message 1: there is no role 3"),
        ([{"role": "usr", "content": "Hi"}], "message 1: there is no role 'usr' (did you mean 'user'?); the"),
        ([USER, {"role": "assistant"}], "message 2: the field 'content' is missing"),
        ([USER, {"role": "assistant", "content": None}], "message 2: the field 'content' is missing"),
        ([{"role": "user", "content": 5}], "message 1: 'content' is int"),
        ([{"role": "user", "content": {"text": "Hi"}}], "message 1: 'content' is dict"),
        ([{"role": "user", "content": ["Hi"]}], "message 1: a part of 'content'"),
        ([{"role": "user", "content": [{"type": "text"}]}], "message 1: a part of type 'text' needs"),
        ([{"role": "user", "content": [{"type": "image", "url": "x"}]}], "message 1: content of type 'image'"),
        ([USER, {"role": "assistant", "tool_calls": "f()"}], "message 2: 'tool_calls' is str"),
        ([USER, {"role": "assistant", "tool_calls": [{}]}], "message 2: a tool call needs a 'function'"),
        ([USER, {"role": "assistant", "tool_calls": ["f"]}], "message 2: a tool call needs a 'function'"),
        ([USER, {"role": "assistant", "tool_calls": [{"function": "f"}]}], "message 2: a tool call needs"),
        (
            [USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": [1]}}]}],
            "message 2: the arguments of 'f'",
        ),
        ([{"role": "user", "content": "Hi", "extra": object()}], "message 1: 'extra' holds object"),
    ],
)
def test_wrong_messages(messages: Any, expected: str) -> None:
    assert complaint(CHATML, messages).startswith(expected)


def test_wrong_tools() -> None:
    for tools in ("weather", [len], {"function": {}}, 3, [{"function": {"name": len}}]):
        assert complaint(CHATML, [USER], tools=tools).startswith("tools: ")


def test_no_template() -> None:
    for template in (None, ""):
        with pytest.raises(InputError, match=r"no chat template: .*chat_template\.jinja"):
            tokenizer_with(template).apply_chat_template([USER])


def test_roles_out_of_order_are_refused_in_the_templates_words() -> None:
    gemma = tokenizer_for("google-gemma-2-2b-it")
    with pytest.raises(InputError, match=r"^message 2: .*must alternate user/assistant"):
        gemma.apply_chat_template([USER, OTHER, SAID])
    with pytest.raises(InputError, match=r"^message 1: .*System role not supported"):
        gemma.apply_chat_template([SYSTEM, USER])
    mistral = tokenizer_for("mistralai-Mistral-Nemo-Instruct-2407")
    with pytest.raises(InputError, match=r"^message 4: .*must alternate"):
        mistral.apply_chat_template([SYSTEM, USER, SAID, SAID, USER])


def test_roles_that_a_template_knows_are_taken() -> None:
    message = {"role": "ipython", "content": "4"}
    assert "ipython" in tokenizer_for("meta-llama-Llama-3.1-8B-Instruct").apply_chat_template([USER, message]).text
    assert complaint(CHATML, [USER, message]).startswith("message 2: there is no role 'ipython'")


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ ''.__class__ }}",
        "{{ messages.__class__ }}",
        "{{ messages[0].content.__class__.__base__.__subclasses__() }}",
        "{{ messages[0]['content']['__class__'] }}{{ messages[0].content['__class__'] }}",
        "{{ messages | attr('__class__') }}",
        "{{ messages | map(attribute='__class__') | list }}",
        "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__globals__['os'] }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ namespace.__init__ }}",
        "{{ namespace(__class__=1) }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ self.__init__ }}",
        "{{ messages[0].content.origins }}",
        "{{ messages[0].content.cut(0, 1) }}",
        "{{ (messages[0].content | safe).origins }}",
        "{{ messages.append(messages[0]) }}",
        "{{ messages[0].update({'content': 'x'}) }}",
        "{{ messages[0].pop('content') }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}{{ os }}",
        "{{ range(100000000) | list }}",
        "{% autoescape true %}{{ messages[0].content }}{% endautoescape %}",
    ],
)
def test_templates_reach_nothing_of_python(template: str) -> None:
    assert "chat template" in complaint(template, [USER])


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'a' * 10000000000 }}",
        "{{ 10000000000 * 'a' }}",
        "{{ [1] * 10000000000 }}",
        "{{ 9 ** 999999999 }}",
        "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    ],
)
def test_templates_cannot_grow_without_bound(template: str) -> None:
    assert "chat template" in complaint(template, [USER])


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{% if messages %}", "line 1"),
        ("a\n{{ messages | nosuchfilter }}", "nosuchfilter"),
        ("{{ messages[0].content | e }}", "No filter named 'e'"),
        ("{{ messages[0].content is nosuchtest }}", "nosuchtest"),
        ("{% nosuchtag %}", "nosuchtag"),
        ("{{ lipsum() }}", "lipsum"),
        ("{{ nothing.more }}", "nothing"),
        ("{{ messages[5].content }}", "list object has no element 5"),
        ("{{ messages[0].content + none }}", "TypeError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ raise_exception('Only\nEnglish.') }}", "Only English"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "Recursion"),
    ],
)
def test_broken_templates(template: str, expected: str) -> None:
    assert expected in complaint(template, [USER])


def test_tools_and_messages_are_left_as_they_were() -> None:
    messages, tools = [dict(USER)], [dict(TOOLS[0])]
    tokenizer_for("Qwen-Qwen3-0.6B").apply_chat_template(messages, tools=tools)
    assert messages == [USER] and tools == TOOLS
    assert type(messages[0]["content"]) is str
