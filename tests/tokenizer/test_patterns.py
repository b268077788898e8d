"""Split patterns: the fast way gives what the pattern says, tiktoken's borders are ours, mistakes are explained."""

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
    *[
        "a",
        "B",
        "zebra",
        "Camel",
        "end ",
        "'s",
        "'LL",
        "'",
        "é",
        "ſ",
        "Ж",
        "中",
        "か",
        "ǅ",
        "\u0301",
        "🙂",
        "\u200d",
        "\ufeff",
    ],
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
def test_the_short_way_is_the_definition(name: str, text: str) -> None:
    """ASCII and other stretches apart, with another engine, give what the pattern gives on the whole text."""
    assert Splitter(name).pretokens(text) == exactly(name, text)


@pytest.mark.parametrize("name", PATTERNS)
def test_every_pair_of_ascii_characters(name: str) -> None:
    characters = list(map(chr, range(128)))
    text = "".join(a + b for a in characters for b in characters)
    assert Splitter(name).pretokens(text) == exactly(name, text)


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
    parts = splitter.pretokens(text)
    assert "".join(parts) == text and all(parts)
    starts = [sum(map(len, parts[:place])) for place in range(len(parts) + 1)]
    assert all(start in starts and end in starts for start, end in matches)


def test_chain_and_none() -> None:
    for chain in ("smollm", [r"\p{N}", "gpt2"], [r"\p{N}", "gpt2", r"z"]):  # the last is none of ours
        assert Splitter(chain).pretokens("a 12") == ["a", " ", "1", "2"]
    assert Splitter(None).pretokens("a b\n") == ["a b\n"]
    assert Splitter(None).pretokens("") == Splitter("gpt2").pretokens("") == Splitter(r"\w+").pretokens("") == []
    assert resolve(["smollm"]) == PATTERNS["smollm"]


def test_unknown_name_and_broken_regex() -> None:
    with pytest.raises(InputError, match="did you mean 'cl100k'"):
        Splitter("cl100")
    with pytest.raises(InputError, match="not a regular expression"):
        Splitter(r"(\p{L}+")
