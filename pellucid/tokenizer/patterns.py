r"""Split patterns: how a byte-level BPE vocabulary cuts text into pre-tokens, which merges never cross.

The patterns need Unicode's classes (`\p{L}`), so they run on the `regex` package. The standard library's `re`, which
none, is three times as fast. So ASCII, of which most text consists, goes through `re`, each class of the pattern
replaced by its members in ASCII, and stretches around other characters go through `regex`. For that, text is cut only
between an ASCII letter and a space. All patterns here end a pre-token there, whatever comes after (the run of letters
has ended, and nothing but a line break continues what is not white space), and look behind nothing after it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import regex

from pellucid.errors import InputError, did_you_mean

if TYPE_CHECKING:
    Pattern = re.Pattern[str] | regex.Pattern[str]

_TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_START = r"[^\r\n\p{L}\p{N}]?"


def _cl100k(digits: str) -> str:
    return rf"{_CONTRACTION}|{_START}\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_TAIL}"


def _o200k(digits: str, contraction: str) -> str:
    """Words end where lower case turns to upper case; the contraction belongs to its word."""
    return (
        rf"{_START}{_UPPER}*{_LOWER}+{contraction}|{_START}{_UPPER}+{_LOWER}*{contraction}"
        rf"|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_TAIL}"
    )


PATTERNS: dict[str, tuple[str, ...]] = {
    "gpt2": (_GPT2,),
    "cl100k": (_cl100k(r"\p{N}{1,3}"),),  # GPT-3.5 and GPT-4
    "llama3": (_cl100k(r"\p{N}{1,3}"),),
    "qwen2": (_cl100k(r"\p{N}"),),
    "qwen35": (rf"{_CONTRACTION}|{_START}[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_TAIL}",),
    "o200k": (_o200k(r"\p{N}{1,3}", f"{_CONTRACTION}?"),),  # GPT-4o and gpt-oss
    "tekken": (_o200k(r"\p{N}", ""),),  # Mistral
    "smollm": (r"\p{N}", _GPT2),
    "deepseek3": (
        r"\p{N}{1,3}",
        "[一-龥\u3040-ゟ゠-ヿ]+",
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
        rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_TAIL}",
    ),
}
"""Name -> the regexes applied one after the other, each to the pieces that the one before left."""

_ASCII_MEMBERS = {
    "L": "A-Za-z",
    "Lu": "A-Z",
    "Ll": "a-z",
    **dict.fromkeys(("Lt", "Lm", "Lo", "M"), ""),
    "N": "0-9",
    "P": r"!-#%-*,-/:;?@\[-\]_{}",
    "S": r"$+<->\^`|~",
}
# Stretches of ASCII, and stretches with other characters in them, cut between a letter and a space.
_STRETCH = re.compile(r"[\x00-\x7f]*[A-Za-z](?= )|.+?(?:[A-Za-z](?= )|\Z)", re.DOTALL)


def _for_ascii(source: str) -> re.Pattern[str]:
    """The pattern as it is on ASCII text."""

    def translate(found: re.Match[str]) -> str:
        members = re.sub(r"\\p\{(\w+)\}", lambda name: _ASCII_MEMBERS[name[1]], found[0])
        return members if found[0].startswith("[") else f"[{members}]"

    return re.compile(re.sub(r"\[(?:\\.|[^\]\\])*\]|\\p\{\w+\}", translate, source), re.ASCII)


_WHOLE = {chain[-1] for name, chain in PATTERNS.items() if name != "deepseek3"}  # that one skips control characters
_LEAVE_NOTHING = _WHOLE | {_for_ascii(source).pattern for source in _WHOLE}


class Splitter:
    """A split pattern: a name from `PATTERNS`, a regex, or a chain of either; None: text is one pre-token.

    What no pattern matches is a pre-token too, as in Hugging Face's "isolated" splits. Raises `InputError` for a
    name that does not exist or a regex that does not compile.
    """

    def __init__(self, split: str | Sequence[str] | None) -> None:
        self.sources = resolve(split)
        self._patterns = [_compile(source) for source in self.sources]
        self._ascii = [_for_ascii(source) for source in self.sources] if self.sources in PATTERNS.values() else None

    def pretokens(self, text: str) -> list[str]:
        """The pre-tokens of `text`, which join to it."""
        if self._ascii is None:
            return _split(self._patterns, text)
        if text.isascii():
            return _split(self._ascii, text)
        parts: list[str] = []
        for stretch in _STRETCH.findall(text):
            parts += _split(self._ascii if stretch.isascii() else self._patterns, stretch)
        return parts


def resolve(split: str | Sequence[str] | None) -> tuple[str, ...]:
    """A pattern's name, a regex, or a chain of either -> the chain of regexes."""
    if split is None:
        return ()
    if not isinstance(split, str):
        return tuple(source for part in split for source in PATTERNS.get(part, (part,)))
    if split in PATTERNS:
        return PATTERNS[split]
    if split.replace("-", "").replace("_", "").isalnum():  # a regex that splits anything holds more than that
        raise InputError(
            f"there is no split pattern {split!r}{did_you_mean(split, PATTERNS)}; known: {', '.join(PATTERNS)}"
        )
    return (split,)


def _compile(source: str) -> regex.Pattern[str]:
    try:
        return regex.compile(source)
    except regex.error as error:
        raise InputError(f"the split pattern {source!r} is not a regular expression: {error}") from None


def _split(patterns: Sequence[Pattern], text: str) -> list[str]:
    """Each pattern splits what the one before left."""
    if not patterns:
        return [text] if text else []
    parts = _isolate(patterns[0], text)
    for pattern in patterns[1:]:
        parts = [piece for part in parts for piece in _isolate(pattern, part)]
    return parts


def _isolate(pattern: Pattern, text: str) -> list[str]:
    """The matches and what lies between them, in order."""
    if pattern.pattern in _LEAVE_NOTHING:
        return pattern.findall(text)
    parts, end = [], 0
    for match in pattern.finditer(text):
        parts += [text[end : match.start()], match[0]]
        end = match.end()
    return [part for part in [*parts, text[end:]] if part]
