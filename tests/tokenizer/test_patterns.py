"""Split patterns: coarse pieces never cut a pre-token, names and regexes are checked, tiktoken's borders are ours."""

from __future__ import annotations

import pytest
import regex
import tiktoken
from hypothesis import given
from hypothesis import strategies as st

from pellucid.errors import InputError
from pellucid.tokenizer.patterns import PATTERNS, Splitter, resolve

# Everything on which borders depend, and look-alikes: \x1c is white space for `re` and not for Unicode, ſ folds to s.
PARTS = [
    *["a", "B", "zebra", "Camel", "'s", "'LL", "'", "é", "ſ", "Ж", "中", "か", "ǅ", "\u0301", "🙂", "\u200d", "\ufeff"],
    *[" ", "  ", "   ", "\n", "\n\n", "\r", "\r\n", "\t", "\v", "\f", "\x1c", "\x85", "\xa0", "\u2028", "\u3000", "\0"],
    *["/", ".", ",", "_", "(", "-", "^", "$", "\\", "1", "23", "4567", "½", "²", "٣", "Ⅷ", "\U0001d7ce"],
]
KNOWN = st.characters(exclude_categories=["Cs", "Cn", "Co"])  # libraries differ in what the newest Unicode assigns
texts = st.lists(st.sampled_from(PARTS) | KNOWN, max_size=12).map("".join)

TIKTOKEN = {  # tiktoken's own spellings, made faster with possessive quantifiers
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    "cl100k": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$"
    r"|\s*[\r\n]|\s+(?!\S)|\s",
}


def exactly(name: str, text: str) -> list[str]:
    """The definition: the whole text through each regex of the chain."""
    parts = [text]
    for source in PATTERNS[name]:
        parts = [piece for part in parts for piece in regex.split(f"({source})", part) if piece]
    return parts


@pytest.mark.parametrize("name", PATTERNS)
@given(texts)
def test_pieces_never_cut_a_pretoken(name: str, text: str) -> None:
    splitter = Splitter(name)
    pieces = splitter.pieces(text)
    assert "".join(pieces) == text
    assert [part for piece in pieces for part in splitter.pretokens(piece)] == exactly(name, text)


@pytest.mark.parametrize("name", PATTERNS)
def test_text_is_cut_into_words(name: str) -> None:
    """Coarse cutting is there for speed: English prose must fall into pieces that come again."""
    assert Splitter(name).cuts
    pieces = Splitter(name).pieces("The ship, an old one,\nsailed on. The ship sailed.\n\n    The end")
    assert pieces.count(" ship") == 2 and " sailed" in pieces and max(map(len, pieces)) < 9


@pytest.mark.parametrize("name", TIKTOKEN)
@given(texts)
def test_borders_are_those_of_tiktoken(name: str, text: str) -> None:
    every_byte = {bytes([byte]): byte for byte in range(256)}
    whole = {word.encode(): 256 + place for place, word in enumerate(dict.fromkeys(exactly(name, text)))}
    ranks = every_byte | {word: place for word, place in whole.items() if len(word) > 1}
    known = sorted(ranks, key=ranks.__getitem__)
    reference = tiktoken.Encoding(
        "t", pat_str=TIKTOKEN[name], mergeable_ranks={w: n for n, w in enumerate(known)}, special_tokens={}
    )
    found = [reference.decode_single_token_bytes(number) for number in reference.encode_ordinary(text)]
    assert found == [word.encode() for word in exactly(name, text)]


@given(texts, st.sampled_from([r"\p{L}+", r"(a|B)+", r"(?=\p{L})", r"x*", r"\s+|[^\s]"]))
def test_any_regex_isolates(text: str, source: str) -> None:
    """Matches and what lies between them are pre-tokens; groups and empty matches lose nothing."""
    splitter = Splitter(source)
    matches = [match.span() for match in regex.finditer(source, text) if match[0]]
    parts = splitter.pieces(text)
    assert "".join(parts) == text and all(parts)
    starts = [sum(map(len, parts[:place])) for place in range(len(parts) + 1)]
    assert all(start in starts and end in starts for start, end in matches)


def test_chain_and_none() -> None:
    for chain in (
        "smollm",
        [r"\p{N}", "gpt2"],
        [r"\p{N}", "gpt2", r"z"],
    ):  # the last is none of ours, and split at once
        splitter = Splitter(chain)
        assert [part for piece in splitter.pieces("a 12") for part in splitter.pretokens(piece)] == ["a", " ", "1", "2"]
    assert Splitter(None).pieces("a b\n") == ["a b\n"]
    assert Splitter(None).pieces("") == Splitter("gpt2").pieces("") == Splitter(r"\w+").pieces("") == []
    assert resolve(["smollm"]) == PATTERNS["smollm"]


def test_unknown_name_and_broken_regex() -> None:
    with pytest.raises(InputError, match="did you mean 'cl100k'"):
        Splitter("cl100")
    with pytest.raises(InputError, match="not a regular expression"):
        Splitter(r"(\p{L}+")
