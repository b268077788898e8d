r"""Split patterns: how a byte-level BPE vocabulary cuts text into pre-tokens, which merges never cross.

Exact splitting needs Unicode classes (`\p{L}`), so it runs on the `regex` package. Most text repeats the same words, so
encoder and trainer do not split it all: the standard library's `re`, which is faster, cuts it into coarse *pieces*, and
only pieces not met before are split exactly. That is right where every piece ends at a border that the pattern has too.
The patterns here look behind nothing, so what follows a border is split as if the text began there, and these are
borders of them (S: a character that is not white space, W: one that is, by Unicode's White_Space):

1. S|W, W not a line break: after S, only line breaks (and for o200k "/") continue a token;
2. an ASCII letter, then ASCII that is neither a letter nor an apostrophe: a run of letters ends, nothing continues it;
3. before the last W of a run of two or more, then S that no earlier pattern of a chain takes out (here: ASCII, no
   digit): `\s+(?!\S)` leaves exactly that one; except for GPT-2, W is no line break here, for `\s*[\r\n]+` takes those,
4. so after the last line break of a run, then S other than "/" (for GPT-2: of a run of one).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import regex

from pellucid.errors import InputError, did_you_mean

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

_W = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # \s of `regex`; that of `re` adds \x1c-\x1f


def _cut(run: str) -> re.Pattern[str]:
    """The coarse pieces, given where a run of white space may be cut."""
    return re.compile(
        r" ?[!-@\[-`{-~]*[A-Za-z]+(?![A-Za-z'\x80-\U0010ffff])"  # most words: border 2
        rf"|{run}"
        rf"|[{_W}]*[^{_W}]+(?:(?=[\r\n])(?!{run})[{_W}]+[^{_W}]+)*(?:(?=[\r\n])(?:{run}))?"  # border 1
    )


_CUT_GPT2 = _cut(rf"[{_W}]+(?=[{_W}][!-/:-~]|\Z)|[\r\n](?=[^{_W}])")
_CUT_LINES = _cut(rf"[{_W}]*[\r\n](?![{_W}/])|[{_W}]+(?=[^\S\r\n\x1c-\x1f][!-/:-~]|\Z)")
_CUTS = {chain: _CUT_GPT2 if chain[-1] == _GPT2 else _CUT_LINES for chain in PATTERNS.values()}


class Splitter:
    """A split pattern: a name from `PATTERNS`, a regex, or a chain of either; None: text is one pre-token.

    What no pattern matches is a pre-token too, as in Hugging Face's "isolated" splits. Raises `InputError` for a
    name that does not exist or a regex that does not compile.
    """

    def __init__(self, split: str | Sequence[str] | None) -> None:
        self.sources = resolve(split)
        self._exact = [_compile(source) for source in self.sources]
        cut = _CUTS.get(self.sources)
        self.cuts = cut is not None
        """Whether pieces are coarser than pre-tokens."""
        self.pieces: Callable[[str], list[str]] = cut.findall if cut else self._split
        """Text -> pieces that join to it, none of which cuts a pre-token."""
        self.pretokens: Callable[[str], list[str]] = self._split if cut else lambda piece: [piece]
        """One of `pieces` -> its pre-tokens."""

    def _split(self, text: str) -> list[str]:
        if not self._exact:
            return [text] if text else []
        first, *others = self._exact
        parts = _isolate(first, text)
        for pattern in others:
            parts = [piece for part in parts for piece in _isolate(pattern, part)]
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


def _isolate(pattern: regex.Pattern[str], text: str) -> list[str]:
    """The matches and what lies between them, in order."""
    if not pattern.groups:
        found = pattern.findall(text)
        if "".join(found) == text and "" not in found:
            return found
    parts, end = [], 0
    for match in pattern.finditer(text):
        parts += [text[end : match.start()], match[0]]
        end = match.end()
    return [part for part in [*parts, text[end:]] if part]
