"""JSON records: lines and arrays against Python's own reader, and errors at the place where it sees them."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.data import json_files
from pellucid.data.json_files import read_json
from pellucid.data.records import BadRecord, Raw

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
objects = st.lists(st.dictionaries(st.text(max_size=5), values, max_size=3), min_size=1, max_size=8)


def read(content: bytes, chunk: int = 3) -> list[Raw | BadRecord]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_files, "_CHUNK", chunk)
        return list(read_json(io.BytesIO(content), "data.json", content[:4096]))


def contents(found: list[Raw | BadRecord]) -> list[Any]:
    assert all(isinstance(item, Raw) for item in found), found
    return [item.value for item in found if isinstance(item, Raw)]


@given(objects, st.sampled_from([None, 0, 2]), st.booleans(), st.integers(1, 50))
def test_an_array(records: list[Any], indent: int | None, ascii_only: bool, chunk: int) -> None:
    text = json.dumps(records, indent=indent, ensure_ascii=ascii_only)
    found = read(f" {text}\n".encode("utf-8", "surrogatepass") if ascii_only else f" {text}\n".encode(), chunk)
    assert contents(found) == records
    if indent == 0:  # every record begins on a line of its own, and says which
        lines = text.split("\n")
        for number, item in enumerate(found, 1):
            name, line = item.place.removesuffix(")").split(" (line ")
            assert name == f"data.json, record {number}" and lines[int(line) - 1].startswith("{")


@given(objects, st.sampled_from(["\n", "\r\n", "\n\n"]))
def test_lines(records: list[Any], end: str) -> None:
    content = end.join(json.dumps(record) for record in records)
    found = read(content.encode())
    assert contents(found) == records
    step = 2 if end == "\n\n" else 1
    assert [item.place for item in found] == [f"data.json:{1 + step * n}" for n in range(len(records))]


@given(objects, st.data())
def test_a_broken_array_is_named_where_python_sees_it(records: list[Any], data: st.DataObject) -> None:
    text = json.dumps(records, indent=data.draw(st.sampled_from([None, 1])))
    cut = data.draw(st.integers(1, len(text) - 1))
    broken = text[:cut] + data.draw(st.sampled_from(["", "}", "x", ",,", '"']))
    try:
        json.loads(broken)
    except json.JSONDecodeError as error:
        *_, last = read(broken.encode(), data.draw(st.integers(1, 40)))
        assert isinstance(last, BadRecord) and last.reason == "invalid JSON"
        if error.msg.startswith("Expecting property name") or ("delimiter" in error.msg and error.pos < len(broken)):
            return  # where commas are concerned, versions of Python differ, and so do we
        assert last.place == f"data.json:{error.lineno}" and f"at column {error.colno} " in str(last), str(last)


def test_a_broken_line_is_named_and_the_others_are_read() -> None:
    found = read(b'{"a": 1}\n{"a": \n{"a": 3} x\n{"a": 4}\nnull\n')
    assert [item.place for item in found] == [f"data.json:{n}" for n in range(1, 6)]
    assert [isinstance(item, Raw) for item in found] == [True, False, False, True, True]
    assert "data.json:2: invalid JSON at column 7 (expecting value)" in str(found[1])
    assert "data.json:3: invalid JSON at column 10 (extra data)" in str(found[2])
    assert "one record a line" in str(found[1]) and "mend or remove the line" in str(found[1])


def test_an_object_over_many_lines_says_what_is_expected() -> None:
    first, *_ = read(json.dumps({"a": 1}, indent=2).encode())
    assert isinstance(first, BadRecord) and "one record a line" in str(first) and "one array" in str(first)


@pytest.mark.parametrize("line", [b"[" * 100_000, b'{"a": ' + b"1" * 5000 + b"}"])
def test_what_python_refuses_for_its_size(line: bytes) -> None:
    for content in (b'{"a": 1}\n' + line + b"\n", b'[{"a": 1}, ' + line + b"]"):
        found = read(content, 1 << 20)
        assert isinstance(found[0], Raw) and isinstance(found[1], BadRecord) and len(str(found[1])) < 400


def test_bytes_that_are_not_utf8_and_nul() -> None:
    found = read(b'{"a": "caf\xe9"}\n{"a": "\0"}\n')
    assert [item.reason for item in found if isinstance(item, BadRecord)] == ["not UTF-8", "NUL bytes"]
    assert "data.json:1: the byte 0xe9 at byte 11" in str(found[0])
    *_, last = read(b'[{"a": 1},\n {"a": "caf\xe9"}]')
    assert isinstance(last, BadRecord) and last.reason == "not UTF-8"


@pytest.mark.parametrize("content", [b"[]", b" [ \n] ", b"\n\n"])
def test_no_records(content: bytes) -> None:
    (bad,) = read(content)
    assert isinstance(bad, BadRecord) and bad.reason == "no records"


def test_text_after_an_array() -> None:
    first, last = read(b'[{"a": 1}]\n{"a": 2}\n')
    assert isinstance(first, Raw) and isinstance(last, BadRecord) and last.place == "data.json:2"


def test_a_record_without_an_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_files, "_LARGEST", 1000)
    stream = io.BytesIO(b'[{"a": 1}, {"a": "' + b"x" * 100_000)
    monkeypatch.setattr(json_files, "_CHUNK", 10)
    first, last = list(read_json(stream, "data.json", b"["))
    assert isinstance(first, Raw) and isinstance(last, BadRecord) and "unterminated string" in str(last)
    assert len(stream.read()) > 50_000  # the rest was not read to find that out
