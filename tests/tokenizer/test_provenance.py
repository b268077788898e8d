"""Traced text is the text that it is made of, and each character knows which one it was."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.tokenizer.provenance import SCAFFOLD, UNKNOWN, Traced, concat, join, origins_of, text_of, to_json

texts = st.text("ab \n\t\r\x1c<>&\"'éß\U0001f600\\|", max_size=12)


def traced(text: str) -> Traced:
    return Traced(text, array("q", range(1, len(text) + 1)))


METHODS: dict[str, Callable[[str, str, str], Any]] = {
    "add": lambda x, a, b: a + x + b,
    "slice": lambda x, a, b: (x[1:], x[:-1], x[::-1], x[len(a) : -1], x[::2]),
    "strip": lambda x, a, b: (x.strip(), x.lstrip(a), x.rstrip(b), x.strip(None)),
    "split": lambda x, a, b: (x.split(), x.split(a or "a"), x.split(None, 1), x.split(" ", 2), x.rsplit(" ", 1)),
    "rsplit": lambda x, a, b: (x.rsplit(), x.rsplit(None, 1), x.rsplit(a or "b", 2)),
    "lines": lambda x, a, b: (x.splitlines(), x.splitlines(True)),
    "partition": lambda x, a, b: (x.partition(a or "a"), x.rpartition(b or " ")),
    "replace": lambda x, a, b: (x.replace(a or "a", b), x.replace("a", b, 1), x.replace("", b), x.replace("aa", "")),
    "affixes": lambda x, a, b: (x.removeprefix(a), x.removesuffix(b), x.removeprefix(x[:2])),
    "join": lambda x, a, b: (x.join([a, b, a]), x.join([]), x.join([x])),
    "iterate": lambda x, a, b: list(x),
    "case": lambda x, a, b: (x.upper(), x.lower(), x.title(), x.capitalize()),
    "compare": lambda x, a, b: (
        x == a,
        a in x,
        x.startswith(a),
        x.find(b),
        hash(x),
        x < a,
        len(x),
        {x: 1} == {str(x): 1},
    ),
}


def check(result: Any, plain: Any, source: str, exact: bool) -> None:
    if isinstance(result, list | tuple):
        assert len(result) == len(plain)
        for one, other in zip(result, plain, strict=True):
            check(one, other, source, exact)
        return
    assert result == plain
    if isinstance(result, str):
        origins = origins_of(result)
        assert len(origins) == len(result)
        for char, origin in zip(str.__str__(result), origins, strict=True):
            assert not exact or origin <= 0 or source[origin - 1] == char


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@given(text=texts, first=texts, second=texts)
def test_methods_are_those_of_str(method: Callable[[str, str, str], Any], text: str, first: str, second: str) -> None:
    exact = method is not METHODS["case"] and method is not METHODS["replace"]
    check(method(traced(text), first, second), method(text, first, second), text, exact)
    check(method(text, traced(first), second), method(text, first, second), first, exact)


@given(text=texts, other=texts)
def test_content_stays_content_and_scaffold_scaffold(text: str, other: str) -> None:
    whole = concat([other, traced(text), other])
    assert list(origins_of(whole)) == [SCAFFOLD] * len(other) + [*range(1, len(text) + 1)] + [SCAFFOLD] * len(other)
    assert type(concat([other, other])) is str
    assert join(other, [text, traced(text)]) == other.join([text, text])
    replaced = traced(text).replace("a", other)
    assert origins_of(replaced).count(SCAFFOLD) == text.count("a") * len(other)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts | st.integers(), inner, max_size=3),
    max_leaves=8,
)


def deeply_traced(value: Any) -> Any:
    if isinstance(value, str):
        return traced(value)
    if isinstance(value, dict):
        return {deeply_traced(key): deeply_traced(item) for key, item in value.items()}
    return [deeply_traced(item) for item in value] if isinstance(value, list) else value


@given(
    value=json_values,
    escaped=st.booleans(),
    indent=st.none() | st.integers(0, 3) | st.just("\t"),
    separators=st.none() | st.just((",", ":")),
)
def test_json_is_that_of_the_standard_library(value: Any, escaped: bool, indent: Any, separators: Any) -> None:
    expected = json.dumps(value, ensure_ascii=escaped, indent=indent, separators=separators)
    for given_value in (value, deeply_traced(value)):
        got = to_json(given_value, ensure_ascii=escaped, indent=indent, separators=separators)
        assert got == expected
        assert len(origins_of(got)) == len(got)


@given(st.dictionaries(texts, st.dictionaries(texts, st.integers(), max_size=3) | texts, max_size=4))
def test_json_sorts_keys_as_the_standard_library_does(value: dict[str, Any]) -> None:
    assert to_json(deeply_traced(value), sort_keys=True) == json.dumps(value, ensure_ascii=False, sort_keys=True)


def test_json_refuses_what_the_standard_library_refuses() -> None:
    for value in ({(1, 2): 3}, object(), {"k": {1, 2}}):
        with pytest.raises(TypeError):
            json.dumps(value)
        with pytest.raises(TypeError):
            to_json(value)


def test_escaped_characters_keep_their_origin() -> None:
    dumped = to_json({"k": traced('a"\n')})
    assert dumped == '{"k": "a\\"\\n"}'
    assert list(origins_of(dumped))[7:12] == [1, 2, 2, 3, 3]


def test_text_of_containers_is_untrusted() -> None:
    for value in ([traced("ab")], {"k": traced("ab")}, {traced("ab"): 1}, {"k": [traced("ab")]}.items()):
        assert SCAFFOLD not in origins_of(text_of(value))
    assert set(origins_of(text_of(iter([traced("ab")])))) == {UNKNOWN}  # what it holds cannot be seen
    assert type(text_of(1.5)) is str
