"""Plain text files: which documents they hold.

A file is one document; a line that is just `<|endoftext|>` ends a document, as in the corpora of TinyStories and GPT-2.
A document longer than about 48 KiB is cut, at an empty line where there is one near, else at the end of a line or a
word, into documents of about 32 KiB: so a book can be split into training and validation text, and is never held whole.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import BinaryIO

from pellucid.data.records import CHANGED, BadRecord, Raw

SEPARATOR = b"<|endoftext|>"
# That it begins a line is looked at behind it: a pattern that begins with its own letters is found far faster.
_SEPARATOR_LINE = re.compile(rb"<\|endoftext\|>(?<![^\n]<\|endoftext\|>)[ \t]*\r?(?:\n|\Z)")
LENGTH = 1 << 15  # bytes that a part of a long document has at most
_CHUNK = 1 << 20
NEWLINE = b"\n"
_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}  # byte-order marks of what is not UTF-8
UTF8_MARK = b"\xef\xbb\xbf"


def read_text(stream: BinaryIO, name: str, counts: Counter[str]) -> Iterator[Raw | BadRecord]:
    """The documents of a text file called `name`, with the lines that they begin at."""
    any_text = False
    for part, line in documents(stream):
        if not part.strip():
            continue
        any_text = True
        if b"\r\n" in part:
            part = part.replace(b"\r\n", b"\n")
            counts[f"{CHANGED}line ends CRLF read as LF"] += 1
        if SEPARATOR in part:
            counts[f"{CHANGED}{SEPARATOR.decode()} inside a line kept as plain text"] += 1
        yield decode(part, name, line)
    if not any_text:
        yield BadRecord(name, "no text", "there is only white space in the file; expected text in UTF-8; leave it out")


def documents(stream: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Each document or part of one, and the number of the line at which it begins. White space is kept."""
    rest, line, ended = b"", 1, False
    while not ended:
        more = stream.read(_CHUNK)
        ended = not more
        rest += more
        start = 0
        for end, following in _borders(rest, ended):
            yield rest[start:end], line
            line += rest.count(b"\n", start, following)
            start = following
        rest = rest[start:]


def _borders(text: bytes, ended: bool) -> Iterator[tuple[int, int]]:
    """Where the documents in `text` end, and where the next begins; the last stays open unless the file has ended."""
    start = 0
    for found in _SEPARATOR_LINE.finditer(text):
        if found.end() == len(text) and not ended:  # the line may go on
            break
        yield from _cuts(text, start, found.start())
        yield found.start(), found.end()
        start = found.end()
    yield from _cuts(text, start, len(text))
    if ended:
        yield len(text), len(text)


def _cuts(text: bytes, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Where to cut what lies between `start` and `end`, each part between half of `LENGTH` and one and a half."""
    while end - start > LENGTH * 3 // 2:
        start = _cut(text, start + LENGTH // 2, start + LENGTH)
        yield start, start


def _cut(text: bytes, first: int, last: int) -> int:
    """The best place between these two to cut."""
    for mark in (b"\n\n", b"\n\r\n", b"\n", b" "):
        place = text.rfind(mark, first, last)
        if place >= 0:
            return place + len(mark)
    while last > first and text[last] & 0xC0 == 0x80:  # within a character
        last -= 1
    return last


def decode(part: bytes, name: str, line: int) -> Raw | BadRecord:
    """The text of some whole lines of a file, of which `line` is the first."""
    zero = part.find(b"\0")
    if zero >= 0:
        place = f"{name}:{line + part.count(NEWLINE, 0, zero)}"
        return BadRecord(
            place, "NUL bytes", "there are NUL bytes, so this is no text; remove them or leave the file out"
        )
    try:
        return Raw(f"{name}:{line}", part.decode())
    except UnicodeDecodeError as error:
        place = f"{name}:{line + part.count(NEWLINE, 0, error.start)}"
        column = error.start - part.rfind(NEWLINE, 0, error.start)
        return BadRecord(
            place,
            "not UTF-8",
            f"the byte {part[error.start]:#04x} at byte {column} of the line is not UTF-8; "
            "convert the file, for instance with: iconv -f LATIN1 -t UTF-8",
        )


def no_text(start: bytes, name: str) -> BadRecord | None:
    """What is wrong with a file of text or JSON that begins with the bytes `start`; None for nothing."""
    if not start:
        return BadRecord(name, "empty file", "the file is empty; expected text or records; fill it or leave it out")
    for mark, encoding in _MARKS.items():
        if start.startswith(mark):
            fix = f"convert it, for instance with: iconv -f {encoding} -t UTF-8"
            return BadRecord(name, "not UTF-8", f"the file begins as {encoding} does; expected UTF-8; {fix}")
    if (zero := start.find(b"\0")) >= 0:
        sentence = f"the byte at {zero} is 0, so this is a binary file; expected text in UTF-8; leave it out"
        return BadRecord(name, "binary file", sentence)
    return None
