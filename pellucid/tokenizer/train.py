"""Training of byte-level BPE (Sennrich et al. 2016, arXiv:1508.07909, algorithm 1), with counts that are only updated.

The most frequent pair of neighbouring symbols becomes a new symbol, until the vocabulary is full. Each different
pre-token is kept once, with how often it occurs. A merge changes only the pre-tokens that hold its pair and, in those,
only the pairs beside it; the heap of pairs is refreshed when an outdated entry comes up (its count can only be too
high, so the top entry that is up to date is the most frequent pair).

Ties, as in the trainer of `tokenizers`: of pairs equally frequent, the one whose first symbol has the lowest id, then
the second. Ids: special tokens, the 256 bytes in the order of GPT-2's alphabet, then the merges in order.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import add
from typing import TYPE_CHECKING, Any

from pellucid.errors import InputError
from pellucid.tokenizer.added import AddedToken
from pellucid.tokenizer.alphabet import HIDDEN, PRINTABLE, to_alphabet
from pellucid.tokenizer.counting import MEMORY_BUDGET, Counted, Progress, count_pretokens
from pellucid.tokenizer.patterns import PATTERNS, resolve

if TYPE_CHECKING:
    from pellucid.tokenizer.tokenizer import Tokenizer

ROLES = {
    "<|endoftext|>": ("bos_token", "eos_token"),
    "<s>": ("bos_token",),
    "</s>": ("eos_token",),
    "<pad>": ("pad_token",),
}
"""What the special tokens with these names are for, as `tokenizer_config.json` has it."""

BYTES = [bytes([byte]) for byte in (*PRINTABLE, *HIDDEN)]
_LARGEST = 1_000_000  # symbols are characters while training, and there are 1,114,112 of those


@dataclass(frozen=True)
class TrainedBPE:
    """What training gives. `vocab` holds bytes and merges; `special_tokens` have the ids below them."""

    vocab: dict[bytes, int]
    merges: list[tuple[bytes, bytes]]
    split: str
    special_tokens: dict[str, int]
    counted: Counted
    """The pre-tokens that it was learnt from, how much text that was, and what did not fit the memory budget."""

    def tokenizer(self) -> Tokenizer:
        """The `Tokenizer` that encodes with it. `<|endoftext|>`, `<s>`, `</s>` and `<pad>` get their usual roles."""
        from pellucid.tokenizer.tokenizer import Tokenizer

        config = {role: name for name in self.special_tokens for role in ROLES.get(name, ())}
        return Tokenizer(self.definition(), config)

    def definition(self) -> dict[str, Any]:
        """It as the content of a `tokenizer.json`."""
        chain, byte_level = resolve(self.split), {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
        built_in = chain[-1:] == PATTERNS["gpt2"]  # ByteLevel has GPT-2's pattern in it
        steps: list[dict[str, Any]] = [
            {"type": "Split", "pattern": {"Regex": source}, "behavior": "Isolated", "invert": False}
            for source in (chain[:-1] if built_in else chain)
        ]
        steps.append({**byte_level, "use_regex": built_in})
        special = [AddedToken(number, name, special=True).to_json() for name, number in self.special_tokens.items()]
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": special,
            "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
            "post_processor": None,
            "decoder": {**byte_level, "use_regex": True},
            "model": {
                "type": "BPE",
                "vocab": self.special_tokens | {to_alphabet(token): number for token, number in self.vocab.items()},
                "merges": [[to_alphabet(left), to_alphabet(right)] for left, right in self.merges],
                "ignore_merges": False,
            },
        }


def train_bpe(
    texts: Iterable[str],
    vocab_size: int,
    *,
    split: str = "gpt2",
    special_tokens: Sequence[str] = (),
    workers: int | None = None,
    memory_budget: int = MEMORY_BUDGET,
    progress: Progress | None = None,
) -> TrainedBPE:
    """Learn `vocab_size` tokens, `special_tokens` included, from `texts`, which are read once, one after the other.

    `split`: a name from `patterns.PATTERNS` or a regex. `workers`: processes that count (None: as many as processors,
    when there is enough text to pay). `memory_budget`: bytes for counting, see `counting`. `progress(phase, done, of)`
    is called as the work goes on. Raises `InputError` for a vocabulary that is too small, or larger than the text
    allows.
    """
    special = list(dict.fromkeys(special_tokens))
    if "" in special:
        raise InputError("a special token is empty: give it a text, such as <|endoftext|>")
    smallest = len(special) + len(BYTES)
    if not smallest <= vocab_size <= _LARGEST:
        raise InputError(
            f"vocab_size = {vocab_size}: must be at least {smallest} (256 bytes and {len(special)} special tokens) "
            f"and at most {_LARGEST}"
        )
    counted = count_pretokens(texts, split, workers=workers, memory_budget=memory_budget, progress=progress)
    tokens, merges = learn_merges(counted.pretokens, vocab_size - len(special), progress)
    if len(tokens) + len(special) < vocab_size:
        raise InputError(
            f"vocab_size = {vocab_size}: the text ({counted.characters} characters) gives only {len(merges)} merges; "
            f"ask for at most {len(tokens) + len(special)}, or add text"
        )
    if clash := set(special).intersection(map(to_alphabet, tokens)):
        raise InputError(f"the special token {min(clash)!r} is an ordinary token too: choose one like <|endoftext|>")
    vocab = {token: number for number, token in enumerate(tokens, len(special))}
    names = {name: number for number, name in enumerate(special)}
    return TrainedBPE(vocab, merges, split, names, counted)


def learn_merges(
    pretokens: dict[bytes, int], size: int, progress: Progress | None = None
) -> tuple[list[bytes], list[tuple[bytes, bytes]]]:
    """Pre-tokens and how often each occurs -> `size` tokens in order of id (fewer if pairs run out), and the merges."""
    symbols = _Symbols(pretokens)
    merges: dict[tuple[bytes, bytes], None] = {}  # in order; a pair can come again if its token is made in two ways
    while len(symbols.tokens) < size and (pair := symbols.most_frequent()):
        left, right = (symbols.tokens[ord(symbol)] for symbol in pair)
        merges.pop((left, right), None)
        merges[left, right] = None
        symbols.merge(pair, left + right)
        if progress and len(symbols.tokens) % 64 == 0:
            progress("merging", len(symbols.tokens), size)
    return symbols.tokens, list(merges)


class _Symbols:
    """Pre-tokens as strings in which a character is a symbol (its code the index in `tokens`), and counts of pairs.

    Strings, because splitting at a pair, joining, and comparing pairs by id are single operations on them.
    """

    def __init__(self, pretokens: dict[bytes, int]) -> None:
        self.tokens = list(BYTES)
        self.index = {token: number for number, token in enumerate(self.tokens)}
        order = {ord(byte): chr(number) for number, byte in enumerate(self.tokens)}
        self.words = [word.decode("latin-1").translate(order) for word in pretokens]
        self.occurrences = list(pretokens.values())
        self.counts: defaultdict[str, int] = defaultdict(int)  # pair -> how often
        self.places: defaultdict[str, list[int]] = defaultdict(list)  # pair -> words that hold it, or did
        for place, (word, count) in enumerate(zip(self.words, self.occurrences, strict=True)):
            for pair in map(add, word, word[1:]):
                self.counts[pair] += count
                self.places[pair].append(place)
        self.heap = [(-count, pair) for pair, count in self.counts.items()]
        heapq.heapify(self.heap)

    def most_frequent(self) -> str | None:
        """The pair to merge, which is forgotten; None when no pairs are left."""
        while self.heap:
            seen, pair = self.heap[0]
            count = self.counts[pair]
            if count == -seen and count > 0:
                heapq.heappop(self.heap)
                return pair
            if count > 0:
                heapq.heapreplace(self.heap, (-count, pair))
            else:
                heapq.heappop(self.heap)
        return None

    def merge(self, pair: str, token: bytes) -> None:
        """Put `token` for `pair` wherever it stands, from left to right."""
        if token not in self.index:
            self.index[token] = len(self.tokens)
            self.tokens.append(token)
        symbol = chr(self.index[token])
        counts, words = self.counts, self.words
        made: defaultdict[str, list[int]] = defaultdict(list)  # new pair -> words that hold it
        first, second = pair[0], pair[1]
        for place in self.places.pop(pair):
            parts = words[place].split(pair)
            if len(parts) == 1:
                continue  # the pair was here, and another merge has taken it
            count = self.occurrences[place]
            if len(parts) == 2:
                left, right = parts
                if left:
                    counts[left[-1] + first] -= count
                    counts[before := left[-1] + symbol] += count
                    made[before].append(place)
                if right:
                    counts[second + right[0]] -= count
                    counts[behind := symbol + right[0]] += count
                    made[behind].append(place)
                words[place] = left + symbol + right
            else:
                self._recount(words[place], -count)
                words[place] = symbol.join(parts)
                for new in self._recount(words[place], count):
                    if symbol in new:
                        made[new].append(place)
        del counts[pair]
        for new, where in made.items():
            self.places[new] += where
            heapq.heappush(self.heap, (-counts[new], new))

    def _recount(self, word: str, count: int) -> list[str]:
        pairs = list(map(add, word, word[1:]))
        for pair in pairs:
            self.counts[pair] += count
        return pairs
