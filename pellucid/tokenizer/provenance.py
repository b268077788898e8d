"""Text that remembers where each of its characters came from.

A chat template mixes its own words (the scaffold, trusted) with those of a conversation (the content, untrusted). Once
they are one string nobody can tell `<|im_end|>` written by the template from `<|im_end|>` typed by a user. So content
goes into the template as `Traced` strings: a `Traced` *is* a `str`, every comparison gives what it would give anyway,
and whatever is made of it (a sum, a slice, a strip, a split, a JSON dump) still knows the origin of each character.

An origin is an integer: `SCAFFOLD` for the template's own characters; a positive number for a character of content,
the same number in every rendering of the same conversation; `UNKNOWN` where an operation mixed the two beyond telling.
A plain `str` is all scaffold.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, SupportsIndex

LARGEST = 16_000_000  # characters

SCAFFOLD = 0
UNKNOWN = -1


class Traced(str):
    """A string with an origin for each character: `len(text.origins) == len(text)`."""

    __slots__ = ("origins",)
    origins: array[int]

    def __new__(cls, text: str, origins: array[int]) -> Traced:
        traced = super().__new__(cls, text)
        traced.origins = origins
        return traced

    def cut(self, start: int, stop: int) -> Traced:
        return Traced(str.__getitem__(self, slice(start, stop)), self.origins[start:stop])

    def __str__(self) -> str:
        return self

    def __add__(self, other: str) -> Traced:
        if not isinstance(other, str):
            return NotImplemented
        return Traced(str.__add__(self, other), self.origins + origins_of(other))

    def __radd__(self, other: str) -> Traced:
        if not isinstance(other, str):
            return NotImplemented
        return Traced(str.__add__(other, self), origins_of(other) + self.origins)

    def __getitem__(self, key: SupportsIndex | slice) -> Traced:
        if isinstance(key, slice):
            return Traced(str.__getitem__(self, key), self.origins[key])
        return Traced(str.__getitem__(self, key), array("q", [self.origins[key]]))

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))

    def strip(self, chars: str | None = None, /) -> str:
        return self.lstrip(chars).rstrip(chars)

    def lstrip(self, chars: str | None = None, /) -> Traced:
        return self.cut(len(self) - len(str.lstrip(self, chars)), len(self))

    def rstrip(self, chars: str | None = None, /) -> str:
        return self.cut(0, len(str.rstrip(self, chars)))

    def removeprefix(self, prefix: str, /) -> str:
        return self.cut(len(self) - len(str.removeprefix(self, prefix)), len(self))

    def removesuffix(self, suffix: str, /) -> str:
        return self.cut(0, len(str.removesuffix(self, suffix)))

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._pieces(str.split(self, sep, maxsplit), sep)

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._pieces(str.rsplit(self, sep, maxsplit), sep)

    def partition(self, sep: str, /) -> tuple[str, str, str]:
        head, found, tail = self._pieces(str.partition(self, sep), "")
        return head, found, tail

    def rpartition(self, sep: str, /) -> tuple[str, str, str]:
        head, found, tail = self._pieces(str.rpartition(self, sep), "")
        return head, found, tail

    def splitlines(self, keepends: bool = False) -> list[str]:
        whole = self._pieces(str.splitlines(self, True), "")
        return (
            whole
            if keepends
            else [line.cut(0, len(kept)) for line, kept in zip(whole, str.splitlines(self), strict=True)]
        )

    def _pieces(self, parts: Iterable[str], separator: str | None) -> list[Any]:
        """`parts` of this text, in order, `separator` apart (None: apart by whitespace)."""
        traced, start = [], 0
        for part in parts:
            if separator is None:
                start = str.find(self, part, start)
            traced.append(self.cut(start, start + len(part)))
            start += len(part) + len(separator or "")
        return traced

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> str:
        return blurred(str.replace(self, old, new, count), self, new) if not old else join(new, self.split(old, count))

    def join(self, parts: Iterable[str], /) -> str:
        return join(self, parts)

    def upper(self) -> str:
        return blurred(str.upper(self), self)

    def lower(self) -> str:
        return blurred(str.lower(self), self)

    def title(self) -> str:
        return blurred(str.title(self), self)

    def capitalize(self) -> str:
        return blurred(str.capitalize(self), self)


def origins_of(text: str) -> array[int]:
    return text.origins if isinstance(text, Traced) else array("q", [SCAFFOLD]) * len(text)


def check_size(size: int) -> None:
    """ValueError for a text that no conversation comes near: a template can double its text with every line."""
    if size > LARGEST:
        raise ValueError(f"it makes a text of {size:,} characters, and {LARGEST:,} is the most")


def concat(pieces: Iterable[str]) -> str:
    """`"".join(pieces)`, with the origins where any piece has them."""
    pieces = list(pieces)
    check_size(sum(map(len, pieces)))
    text = "".join(pieces)
    if not any(isinstance(piece, Traced) for piece in pieces):
        return text
    origins = array("q")
    for piece in pieces:
        origins.extend(origins_of(piece))
    return Traced(text, origins)


def join(separator: str, parts: Iterable[str]) -> str:
    pieces: list[str] = []
    for part in parts:
        pieces += [separator, part]
    return concat(pieces[1:])


def leaves(value: Any) -> Iterator[Any]:
    """What containers hold, keys included."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(key)
            yield from leaves(item)
    elif isinstance(value, Collection) and not isinstance(value, str | bytes):
        for item in value:
            yield from leaves(item)
    else:
        yield value


def traced_in(value: Any) -> list[Traced]:
    return [leaf for leaf in leaves(value) if isinstance(leaf, Traced) and leaf]


def opaque(value: Any) -> bool:
    """Whether something is in `value` that may hide text: a generator, a namespace."""
    return not all(leaf is None or isinstance(leaf, str | bytes | bool | int | float) for leaf in leaves(value))


def blurred(result: Any, *inputs: Any) -> Any:
    """`result` of an operation on `inputs` whose characters cannot be followed one by one.

    A result as long as its only input is taken to keep the places (`upper`); one made of content alone is content,
    and one made of content and scaffold is UNKNOWN. Results that are no text, or made of no content, are as they were.
    """
    if isinstance(result, list | tuple):
        return type(result)(blurred(item, *inputs) for item in result)
    if not isinstance(result, str) or isinstance(result, Traced):
        return result
    sources, hidden = traced_in(inputs), opaque(inputs)
    if not sources and not hidden:
        return result
    if len(sources) == 1 and len(result) == len(sources[0]) and not hidden:
        return Traced(result, sources[0].origins)
    mixed = hidden or any(SCAFFOLD in source.origins or UNKNOWN in source.origins for source in sources)
    return Traced(result, array("q", [UNKNOWN if mixed else sources[0].origins[0]]) * len(result))


def text_of(value: Any) -> str:
    """`str(value)`, where the text of a list or dict stays as untrusted as what is in it."""
    return value if isinstance(value, str) else blurred(str(value), value)


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """`json.dumps(value, ...)`, with the origins of the strings in it."""
    between, colon = separators or ((",", ": ") if indent is not None else (", ", ": "))
    step = " " * indent if isinstance(indent, int) else indent

    def write(value: Any, margin: str) -> Iterator[str]:
        if isinstance(value, str):
            yield from ('"', json_escaped(value, ensure_ascii), '"')
        elif isinstance(value, dict):
            items = sorted(value.items()) if sort_keys else value.items()
            yield from write_all("{", "}", [(json_key(key), item) for key, item in items], margin)
        elif isinstance(value, list | tuple):
            yield from write_all("[", "]", [(None, item) for item in value], margin)
        else:
            yield json.dumps(value)

    def write_all(left: str, right: str, items: list[tuple[str | None, Any]], margin: str) -> Iterator[str]:
        inner = "" if step is None else margin + step
        yield left
        for number, (key, item) in enumerate(items):
            yield (between if number else "") + ("" if step is None else "\n" + inner)
            if key is not None:
                yield from write(key, inner)
                yield colon
            yield from write(item, inner)
        yield right if step is None or not items else "\n" + margin + right

    return concat(write(value, ""))


def json_key(key: Any) -> str:
    if isinstance(key, str):
        return key
    if key is None or isinstance(key, bool | int | float):
        return json.dumps(key)
    raise TypeError(f"keys must be str, int, float, bool or None, not {type(key).__name__}")


def json_escaped(text: str, ensure_ascii: bool) -> str:
    escape: Callable[[str], str] = lambda part: json.dumps(part, ensure_ascii=ensure_ascii)[1:-1]  # noqa: E731
    whole = escape(text)
    if not isinstance(text, Traced):
        return whole
    if len(whole) == len(text):
        return Traced(whole, text.origins)
    return concat(
        Traced(part, array("q", [origin]) * len(part))
        for part, origin in (
            (escape(char), origin) for char, origin in zip(str.__str__(text), text.origins, strict=True)
        )
    )
