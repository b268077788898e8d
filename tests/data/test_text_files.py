"""Plain text: which documents a file holds, and that nothing of it is lost."""

from __future__ import annotations

import io
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.data import text_files
from pellucid.data.records import BadRecord, Raw
from pellucid.data.text_files import documents, no_text, read_text


def read(content: bytes) -> tuple[list[Raw | BadRecord], Counter[str]]:
    counts: Counter[str] = Counter()
    return list(read_text(io.BytesIO(content), "book.txt", counts)), counts


def cut(content: bytes, length: int) -> list[tuple[bytes, int]]:
    """The documents where borders of parts and of what is read at a time come often."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "LENGTH", length)
        patch.setattr(text_files, "_CHUNK", 7)
        return list(documents(io.BytesIO(content)))


pieces = st.lists(
    st.sampled_from(["a", "word ", "é", "漢字", "\n", "\n\n", " ", "\r\n", "<|endoftext|>", "😀"]), max_size=60
)


@given(pieces)
def test_nothing_is_lost_and_every_line_number_is_right(parts: list[str]) -> None:
    text = "".join(parts).replace("<|endoftext|>", "<|endoftext>")
    content = text.encode()
    found = cut(content, 16)
    assert b"".join(part for part, _ in found) == content
    place = 0
    for part, line in found:
        assert line == 1 + content.count(b"\n", 0, place)
        assert len(part) <= 24
        part.decode()  # no character is cut
        place += len(part)


@given(pieces)
def test_a_line_of_its_own_ends_a_document(parts: list[str]) -> None:
    text = "".join(parts).replace("\r\n", "\n") + "\nend"
    found = [(part.decode(), line) for part, line in cut(text.encode(), 1 << 15)]
    expected, lines, first = [], [], 1
    for number, line in enumerate(text.splitlines(keepends=True), 1):  # the straightforward way
        if line.rstrip(" \n") == "<|endoftext|>" and not line.startswith(" "):
            expected.append(("".join(lines), first))
            lines, first = [], number + 1
        else:
            lines.append(line)
    assert found == [*expected, ("".join(lines), first)]


def test_a_book_is_cut_at_empty_lines() -> None:
    paragraph = "The lighthouse stood on the rock, and nobody came. " * 8
    text = "\n\n".join(f"{number}. {paragraph}" for number in range(500))
    found, _ = read(text.encode())
    texts = [item.value for item in found if isinstance(item, Raw)]
    assert "".join(texts) == text and len(texts) == len(found) > 5
    assert all(one.endswith("\n\n") for one in texts[:-1]) and all(one[0].isdigit() for one in texts)
    assert all(16_000 < len(one) < 49_153 for one in texts)


def test_a_short_file_is_one_document() -> None:
    assert read(b"one\n\ntwo\n")[0] == [Raw("book.txt:1", "one\n\ntwo\n")]


def test_what_is_read_otherwise_than_written_is_counted() -> None:
    found, counts = read(b"one\r\ntwo <|endoftext|> three\n<|endoftext|>\r\nfour\r\n")
    assert [item.value for item in found if isinstance(item, Raw)] == ["one\ntwo <|endoftext|> three\n", "four\n"]
    assert counts == {
        "changed: line ends CRLF read as LF": 2,
        "changed: <|endoftext|> inside a line kept as plain text": 1,
    }


def test_a_bad_document_is_named_with_its_line_and_the_others_are_read() -> None:
    found, _ = read(b"good\n<|endoftext|>\nline\ncaf\xe9\n<|endoftext|>\nzero\0\n<|endoftext|>\nlast")
    assert [item.place for item in found] == ["book.txt:1", "book.txt:4", "book.txt:6", "book.txt:8"]
    bad = found[1]
    assert isinstance(bad, BadRecord) and bad.reason == "not UTF-8"
    assert str(bad) == (
        "book.txt:4: the byte 0xe9 at byte 4 of the line is not UTF-8; "
        "convert the file, for instance with: iconv -f LATIN1 -t UTF-8"
    )
    assert isinstance(found[2], BadRecord) and found[2].reason == "NUL bytes"


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"", "the file is empty"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "binary file"),
        ("text".encode("utf-16"), "iconv -f UTF-16"),
    ],
)
def test_no_text(start: bytes, words: str) -> None:
    bad = no_text(start, "file")
    assert bad is not None and str(bad).startswith("file: ") and words in str(bad)


def test_white_space_is_no_text() -> None:
    (bad,), _ = read(b" \n\n<|endoftext|>\n \n")
    assert isinstance(bad, BadRecord) and bad.reason == "no text"


def test_binary_without_any_border_is_cut_all_the_same() -> None:
    found, _ = read(b"\x80" * 200_000)
    assert len(found) > 3 and all(isinstance(item, BadRecord) for item in found)
