"""Added tokens: strings that are found in a text before anything else is done to it, and become one id each."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class AddedToken:
    """One entry of `added_tokens` in a tokenizer.json; the flags mean what the `tokenizers` library means by them.

    special: a control token, which plain text can never make. normalized: looked for after normalisation, not before.
    lstrip, rstrip: swallows the white space at its side. single_word: not inside a word.
    """

    id: int
    content: str
    special: bool = False
    normalized: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> AddedToken:
        return cls(**{name: entry[name] for name in cls.__dataclass_fields__ if name in entry})

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class AddedTokens:
    """Splits a text at added tokens: at the leftmost, and of those that begin there at the longest."""

    def __init__(self, tokens: Iterable[AddedToken], written: Callable[[str], str] = str) -> None:
        """`written(content)` is how a token stands in the text that will be split (its normalised form, or itself)."""
        self.by_text = {written(token.content): token for token in tokens if token.content}
        longest_first = sorted(filter(None, self.by_text), key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def split(self, text: str) -> Iterator[str | int]:
        """The stretches of `text` between added tokens (never empty), and the ids of the added tokens."""
        done = 0
        for match in self.pattern.finditer(text) if self.pattern else ():
            token = self.by_text[match.group()]
            start, stop = match.span()
            if token.single_word and (is_word(text[start - 1 : start]) or is_word(text[stop : stop + 1])):
                continue
            if token.lstrip:
                start = len(text[:start].rstrip())
            if token.rstrip:
                stop = len(text) - len(text[stop:].lstrip())
            if done < start:
                yield text[done:start]
            yield token.id
            done = stop
        if done < len(text):
            yield text[done:]


def is_word(character: str) -> bool:
    return bool(re.match(r"\w", character))
