"""The templates of real models render as transformers renders them, to the same ids, or are refused as it refuses."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from pellucid.errors import InputError
from tests.tokenizer.chats import (
    CONVERSATIONS,
    NEEDED,
    SYSTEM,
    TEMPLATES,
    TOOLS,
    USER,
    end_of_sequence,
    reference_tokenizer,
    tokenizer_for,
    tokenizer_with,
)


def rendered_by_transformers(name: str, messages: Any, tools: Any, prompt: bool, **variables: Any) -> Any:
    """Its text and ids, or None where it refuses."""
    reference = reference_tokenizer(end_of_sequence(name))
    try:
        text = reference.apply_chat_template(
            messages,
            tools=tools,
            chat_template=TEMPLATES[name],
            add_generation_prompt=prompt,
            tokenize=False,
            **variables,
        )
    except Exception:  # noqa: BLE001 (templates raise whatever Python raises)
        return None
    return text, reference(text, add_special_tokens=False)["input_ids"]


def rendered_here(name: str, messages: Any, tools: Any, prompt: bool, **variables: Any) -> Any:
    try:
        chat = tokenizer_for(name).apply_chat_template(messages, tools=tools, add_generation_prompt=prompt, **variables)
    except InputError as error:
        assert "\n" not in str(error)
        return None
    return chat.text, chat.ids


def test_the_templates_are_at_hand() -> None:
    assert len(TEMPLATES) == 70


@pytest.mark.parametrize("name", TEMPLATES)
def test_renders_as_transformers_does(name: str) -> None:
    before = datetime.now().date()
    for messages, tools in CONVERSATIONS.values():
        for prompt in (False, True):
            expected = rendered_by_transformers(name, messages, tools, prompt, **NEEDED.get(name, {}))
            got = rendered_here(name, messages, tools, prompt, **NEEDED.get(name, {}))
            assert got == expected or datetime.now().date() != before  # some templates write today's date


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("thinking", [False, True])
def test_variables_reach_the_template(name: str, thinking: bool) -> None:
    variables = {"enable_thinking": thinking, "documents": [{"title": "Oslo", "text": "A <|im_end|> city."}]}
    expected = rendered_by_transformers(name, [SYSTEM, USER], TOOLS, True, **variables)
    got = rendered_here(name, [SYSTEM, USER], TOOLS, True, **variables)
    assert (got and got[0]) == (expected and expected[0])


SNIPPETS = {
    "filters": "{{ x | trim | upper }}{{ x | replace('b', 'é') }}{{ [x, 1] | join(', ') }}{{ x | indent(3, true) }}",
    "methods": "{{ x.strip().split('b') }}{{ '-'.join([x, x]) }}{{ x.replace('a', x) }}{{ x.title() }}{{ x[::-1] }}",
    "operators": "{{ x ~ 1 ~ none }}{{ 'a' + x + 'a' }}{{ '%s, %d' % (x, 3) }}{{ x * 2 }}{{ x[1:-1] }}{{ x[0] }}",
    "formatting": "{{ '{} {}'.format(x, 2) }}{{ '{0!r}'.format(x) }}{{ '{a:>9}'.format(a=x) }}{{ '%s' | format(x) }}",
    "format_map": "{{ '{a}'.format_map({'a': x}) }}{{ '{[a]}'.format({'a': x}) }}{{ '{{}}'.format(x) }}",
    "json": "{{ [x, {x: 1.5, 'k': none}] | tojson }}{{ {x: [x, []]} | tojson(indent=2) }}",
    "ascii json": "{{ {'b': x, 'a': {}} | tojson(ensure_ascii=true, separators=('!', '?'), sort_keys=true) }}",
    "containers": "{{ [x] }}{{ {'k': x} }}{{ [x] | string }}{{ (x, 1) }}{{ [x] | first }}{{ x | list }}{{ x|length }}",
    "blocks": "{% set y %}<{{ x }}>{% endset %}{{ y | trim }}{% for c in x %}{{ c }};{% endfor %}",
    "filter blocks": "{% filter upper %}{{ x }}{% endfilter %}{{ x | wordwrap(3) }}{{ x | truncate(4) }}",
    "macros": "{% macro m(a, b='d') %}{{ a }}/{{ b }}{{ caller() if caller }}{% endmacro %}{{ m(x) }}",
    "calls": "{% macro m(a) %}{{ a }}{{ caller() }}{% endmacro %}{% call m(x) %}!{% endcall %}",
    "safe": "{{ '<b>' | safe + x }}{{ x + ('<i>' | safe) }}{{ ('<i>' | safe) ~ x }}",
    "loops": "{% for i in range(5) %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% break %}{% endfor %}",
    "namespaces": "{% set ns = namespace(a=x) %}{% set ns.a = ns.a + x %}{{ ns.a }}{{ dict(a=x).get('a') }}",
    "missing": "{{ messages[0].nothing }}{{ nothing }}{{ nothing is defined }}{{ (none or x) | default('d') }}",
    "sorting": "{{ {'b': x, 'a': 1} | dictsort }}{{ [x, 'a'] | sort | join }}{{ x | lower | unique | join }}",
}


@pytest.mark.parametrize("snippet", SNIPPETS.values(), ids=SNIPPETS)
@pytest.mark.parametrize("content", ['  a<b>\nb & "c"\'é\n', "", "abab", "\n\n a"])
def test_jinja_means_what_it_means_there(snippet: str, content: str) -> None:
    template = "{% set x = messages[0].content %}" + snippet
    messages = [{"role": "user", "content": content}]
    try:
        expected = reference_tokenizer().apply_chat_template(messages, chat_template=template, tokenize=False)
    except Exception:  # noqa: BLE001
        expected = None
    try:
        got = tokenizer_with(template).apply_chat_template(messages).text
    except InputError:
        got = None
    assert got == expected
