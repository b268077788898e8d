"""JSON: a record a line, or one array of records. Neither is ever held whole."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from pellucid.data.records import BadRecord, Raw
from pellucid.data.text_files import decode

_CHUNK = 1 << 20
_LARGEST = 1 << 26  # characters of one record of an array
_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()
EXPECTED = 'expected one record a line, such as {"messages": [...]}, or one array of records'


def read_json(stream: BinaryIO, name: str, start: bytes) -> Iterator[Raw | BadRecord]:
    """The records of a JSON file that begins with the bytes `start`: an array if it begins with `[`, else lines."""
    if start.lstrip()[:1] == b"[":
        return Array(stream, name).read()
    return read_lines(stream, name)


def read_lines(stream: BinaryIO, name: str) -> Iterator[Raw | BadRecord]:
    """A record a line; empty lines are passed over."""
    any_record = False
    for number, line in enumerate(stream, 1):
        if line.strip():
            any_record = True
            yield parse(line, name, number)
    if not any_record:
        yield BadRecord(name, "no records", f"there are only empty lines in the file; {EXPECTED}")


def parse(line: bytes, name: str, number: int) -> Raw | BadRecord:
    """One line of JSON Lines."""
    text = decode(line.rstrip(b"\r\n"), name, number)
    if isinstance(text, BadRecord):
        return text
    try:
        return Raw(text.place, json.loads(text.value))
    except json.JSONDecodeError as error:
        seen = f"invalid JSON at column {error.colno} ({lower(error.msg)})"
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets nested thousands deep
        seen = f"invalid JSON ({lower(str(error))})"
    return BadRecord(text.place, "invalid JSON", f"{seen}; {EXPECTED}; mend or remove the line")


class Array:
    """One array of records, read record by record."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self.stream = io.TextIOWrapper(stream, encoding="utf-8", newline="")
        self.name = name
        self.text = ""  # what has been read; all before `at` is dealt with
        self.at = 0
        self.known = 0  # a place whose line and column are these
        self.line, self.column = 1, 1
        self.number = 1  # of the record that is read

    def read(self) -> Iterator[Raw | BadRecord]:
        """The records; an error is the last thing, because where the next record begins cannot be known."""
        try:
            self.next_character()
            self.at += 1  # the [
            if self.next_character() == "]":
                yield BadRecord(self.name, "no records", f"the array is empty; {EXPECTED}")
                return
            while True:
                self.note_position()
                place = f"{self.name}, record {self.number} (line {self.line})"
                yield Raw(place, self.value())
                mark = self.next_character()
                self.at += 1
                if mark == "]":
                    break
                if mark != ",":
                    raise self.broken(self.at - 1, f"expecting ',' or ']' after record {self.number}")
                self.number += 1
                self.next_character()
            if self.next_character():
                raise self.broken(self.at, "text after the end of the array")
        except BadRecord as error:
            yield error
        except UnicodeDecodeError:
            yield self.broken(len(self.text), "bytes that are not UTF-8 in what follows", "not UTF-8")

    def next_character(self) -> str:
        """The next character that is no white space, not yet passed; "" at the end of the file."""
        while True:
            self.at = _SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]  # it matches anything
            if self.at < len(self.text) or not self.more():
                return self.text[self.at : self.at + 1]

    def value(self) -> Any:
        """The record at `at`, which is passed."""
        while True:
            try:
                value, self.at = _DECODER.raw_decode(self.text, self.at)
                return value
            except json.JSONDecodeError as error:  # wrong, or not read to its end
                behind = error.pos - self.at  # `more` moves both
                if len(self.text) - self.at > _LARGEST or not self.more():
                    raise self.broken(self.at + behind, lower(error.msg)) from None
            except (ValueError, RecursionError) as error:
                raise self.broken(self.at, lower(str(error))) from None

    def more(self) -> bool:
        """Read as much again as is there; False at the end of the file."""
        self.note_position()
        self.text, self.at, self.known = self.text[self.at :], 0, 0
        more = self.stream.read(max(_CHUNK, len(self.text)))
        self.text += more
        return bool(more)

    def note_position(self) -> None:
        self.line, self.column = self.position(self.at)
        self.known = self.at

    def position(self, place: int) -> tuple[int, int]:
        """Line and column of the character at `place`, which is not before the one that is known."""
        newline = self.text.rfind("\n", self.known, place)
        column = place - newline if newline >= 0 else self.column + place - self.known
        return self.line + self.text.count("\n", self.known, place), column

    def broken(self, place: int, what: str, reason: str = "invalid JSON") -> BadRecord:
        line, column = self.position(place)
        return BadRecord(
            f"{self.name}:{line}",
            reason,
            f"invalid JSON at column {column} ({what}), in record {self.number} of the array, after which nothing "
            "can be read; expected an array of records; mend it, or write one record a line",
        )


def lower(message: str) -> str:
    return message[:1].lower() + message[1:]
