"""tiktoken rank files: a line a token, its bytes in base64 and its rank, which is its id.

There are no merges. Two neighbours merge if their concatenation is a token, the lowest rank first, and a pre-token
that is a token itself is taken whole (tiktoken's `byte_pair_encode`).
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pellucid.errors import InputError, did_you_mean
from pellucid.tokenizer.added import AddedToken
from pellucid.tokenizer.alphabet import from_alphabet, to_alphabet
from pellucid.tokenizer.patterns import resolve

if TYPE_CHECKING:
    from pellucid.tokenizer.tokenizer import Tokenizer

LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n?")

# The published files, by name: split pattern and control tokens (tiktoken's `openai_public`).
FIM = {"<|endoftext|>": 100257, "<|fim_prefix|>": 100258, "<|fim_middle|>": 100259, "<|fim_suffix|>": 100260}
PUBLISHED: dict[str, tuple[str, dict[str, int]]] = {
    "r50k_base": ("gpt2", {"<|endoftext|>": 50256}),
    "p50k_base": ("gpt2", {"<|endoftext|>": 50256}),
    "cl100k_base": ("cl100k", {**FIM, "<|endofprompt|>": 100276}),
    "o200k_base": ("o200k", {"<|endoftext|>": 199999, "<|endofprompt|>": 200018}),
}


def load(path: Path) -> Tokenizer:
    """A rank file that carries the name of a published one, which says how text is split: the file itself does not."""
    if path.stem not in PUBLISHED:
        raise InputError(
            f"{path}: a rank file does not say how it splits text, and {path.stem!r} is no published one"
            f"{did_you_mean(path.stem, PUBLISHED)}; known: {', '.join(PUBLISHED)}; "
            "for another, call pellucid.tokenizer.formats.tiktoken.from_ranks with its split pattern"
        )
    split, special = PUBLISHED[path.stem]
    return from_ranks(read_ranks(path), split, special)


def read_ranks(path: Path) -> dict[bytes, int]:
    """The ranks of a file. Raises InputError with the number of the first line that is none."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line:
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise InputError(
                f"{path}, line {number}: expected a token in base64 and its rank, found {line[:60]!r}"
            ) from None
    if not ranks:
        raise InputError(f"{path}: there is no token in it")
    return ranks


def from_ranks(ranks: Mapping[bytes, int], split: str, special: Mapping[str, int]) -> Tokenizer:
    """A tokenizer from ranks, a split pattern (a regex or a name, see `patterns`) and control tokens."""
    from pellucid.tokenizer.tokenizer import Tokenizer

    splits = [
        {"type": "Split", "pattern": {"Regex": source}, "behavior": "Isolated", "invert": False}
        for source in resolve(split)
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    definition = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [AddedToken(number, content, special=True).to_json() for content, number in special.items()],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "vocab": {to_alphabet(token): rank for token, rank in ranks.items()},
            "merges": None,
            "ignore_merges": True,
        },
    }
    ends = {role: "<|endoftext|>" for role in ("bos_token", "eos_token") if "<|endoftext|>" in special}
    return Tokenizer(definition, ends)


def spelt_merges(vocab: Mapping[str, int]) -> list[tuple[str, str]]:
    """The merges of a vocabulary that has none of its own: every way to put a token together from two others, in the
    order of the token's rank."""
    ranks = {from_alphabet(token): rank for token, rank in vocab.items()}
    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        halves = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        made = [pair for pair in halves if pair[0] in ranks and pair[1] in ranks]
        made.sort(key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        merges += [(to_alphabet(left), to_alphabet(right)) for left, right in made]
    return merges
