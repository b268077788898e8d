"""What reading yields: a raw value with its place, and a record in its one normal form, or what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Literal

from pellucid.errors import InputError

Kind = Literal["text", "conversation", "preference"]

# How the keys of the counts of a reading begin: "kept: messages", "dropped: empty turn", "changed: ...".
KEPT = "kept: "
DROPPED = "dropped: "
CHANGED = "changed: "


@dataclass(frozen=True, slots=True)
class Raw:
    """A value as its file holds it (a document's text, or what JSON and tables hold), and where it stands."""

    place: str
    value: Any


@dataclass(frozen=True, slots=True)
class Record:
    """A value in the one normal form of its kind.

    place: "file:line" (JSON arrays and tables: "file, record n").
    format: how the file had it, such as "alpaca".
    content: text: the str. conversation: {"messages": [{"role", "content", ...}], "tools"?: [...]}.
        preference: {"prompt", "chosen", "rejected": lists of messages, "tools"?}, or of k answers
        {"prompt", "answers": lists of messages, "scores": numbers, higher is better, "tools"?}.
    """

    place: str
    kind: Kind
    format: str
    content: Any


class BadRecord(InputError):
    """A record that cannot be used: `place`, a short `reason` to count it under, and the sentence as the message."""

    def __init__(self, place: str, reason: str, sentence: str) -> None:
        super().__init__(f"{place}: {sentence}")
        self.place = place
        self.reason = reason


def digest(record: Record) -> bytes:
    """Equal for records of equal content (and by chance for a pair among a million once in 4e7 times)."""
    return blake2b(repr(ordered(record.content)).encode("utf-8", "surrogatepass"), digest_size=8).digest()


def ordered(value: Any) -> Any:
    """The value without the order of its keys."""
    if isinstance(value, dict):
        return sorted((key, ordered(item)) for key, item in value.items())
    return [ordered(item) for item in value] if isinstance(value, list) else value
