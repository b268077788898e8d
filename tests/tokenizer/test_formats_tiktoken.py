"""Rank files: what is read, and what is refused with its line. (Ids: test_vocabularies.py.)"""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
import tiktoken
import tiktoken.load
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.errors import InputError
from pellucid.tokenizer.formats.tiktoken import from_ranks, read_ranks
from pellucid.tokenizer.tokenizer import Tokenizer

BYTES = {bytes([byte]): byte for byte in range(256)}


@st.composite
def rank_tables(draw: st.DrawFn) -> dict[bytes, int]:
    """Single bytes, and words of a small alphabet in any order: some that no chain of merges reaches."""
    words = draw(st.lists(st.text("ab c", min_size=2, max_size=5), unique=True, max_size=12))
    return BYTES | {word.encode(): 256 + place for place, word in enumerate(words)}


@given(rank_tables(), st.text("ab c", max_size=60))
@settings(max_examples=300)
def test_any_ranks_give_tiktokens_ids(ranks: dict[bytes, int], text: str) -> None:
    """A pre-token that is a token is taken whole, even where merges would not lead to it."""
    pattern = r"\S+|\s+"
    theirs = tiktoken.Encoding("any", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    assert from_ranks(ranks, pattern, {}).encode(text) == theirs.encode_ordinary(text)


def test_files_are_read_as_tiktoken_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "some.tiktoken"
    ranks = BYTES | {b"hello": 256}
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()))
    assert read_ranks(path) == tiktoken.load.load_tiktoken_bpe(str(path)) == ranks


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no token in it"),
        (b"aGVsbG8= 0\nnot base64! 1\n", "line 2: .*'?not base64! 1"),
        (b"aGVsbG8=\n", "line 1"),
        (b"aGVsbG8= x\n", "line 1"),
        (b"\xff\xfe\x00\x01 1\n", "line 1"),
    ],
)
def test_lines_that_are_no_ranks(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "cl100k_base.tiktoken"
    path.write_bytes(content)
    with pytest.raises(InputError, match=said):
        Tokenizer.load(path)


def test_a_file_of_unknown_name(tmp_path: Path) -> None:
    """The file does not say how text is split, and a guess would give wrong ids in silence."""
    path = tmp_path / "cl100k_bsae.tiktoken"
    path.write_bytes(b"aGVsbG8= 0\n")
    with pytest.raises(InputError, match=r"did you mean 'cl100k_base'.*from_ranks"):
        Tokenizer.load(path)
