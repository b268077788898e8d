"""Byte-level byte-pair encoding (Sennrich et al. 2016, arXiv:1508.07909; on bytes: GPT-2, Radford et al. 2019).

Text is split into pre-tokens; each starts as single bytes, and the pair of neighbours of lowest rank is merged,
the leftmost first, until no pair has a rank. Here it is in Python; `bpe_native.py` does the same faster, where there is
a compiler.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import chain

from pellucid import native
from pellucid.errors import InputError
from pellucid.tokenizer.bpe_native import SOURCE, NativeEncoder
from pellucid.tokenizer.patterns import Splitter

_NO_RANK = 1 << 62
_HEAP_FROM = 128  # bytes: below it, searching a short list beats keeping a heap
_REMEMBERED_LENGTH = 256  # characters: longer pieces hardly return
_MEMORY = 1 << 23  # characters, each pre-token counted with 16 more: some 300,000 words, 60 MB


class BytePairEncoder:
    """Text -> ids.

    `merges` in order of rank; None is tiktoken's rule: neighbours merge if their concatenation is in `vocab`, the
    lowest id first. `split` as in `Splitter`. `ignore_merges`: a pre-token that is itself in `vocab` is taken whole.

    Lone surrogates, which UTF-8 cannot hold, become U+FFFD, and surrogate pairs the character that they stand for, as
    in tiktoken (`tokenizers` refuses such text). What was encoded is remembered, within bounds.
    """

    def __init__(
        self,
        vocab: dict[bytes, int],
        merges: Sequence[tuple[bytes, bytes]] | None,
        split: str | Sequence[str] | None,
        *,
        ignore_merges: bool,
    ) -> None:
        self.vocab = vocab
        self.ignore_merges = ignore_merges
        self.splitter = Splitter(split)
        self._merges = merges
        self._ids = _Memory(self)

    @cached_property
    def _native(self) -> NativeEncoder | None:
        library = native.load(SOURCE)
        if library is None:
            return None
        return NativeEncoder(library, self.vocab, self._merges, self.splitter, ignore_merges=self.ignore_merges)

    @cached_property
    def _rank(self) -> Callable[[bytes, bytes], int]:
        return _rank_by_id(self.vocab) if self._merges is None else _rank_by_order(self._merges)

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, in time near-linear in its length whatever it holds."""
        try:
            ids = self._native.encode(text) if self._native else None
            return self._encode_in_python(text) if ids is None else ids
        except UnicodeEncodeError:
            return self.encode(repair(text))

    def _encode_in_python(self, text: str) -> list[int]:
        return list(chain.from_iterable(map(self._ids.__getitem__, self.splitter.pretokens(text))))

    def encode_bytes(self, piece: bytes) -> list[int]:
        """The ids of one pre-token."""
        if self.ignore_merges and piece in self.vocab:
            return [self.vocab[piece]]
        parts = self._merge_short(piece) if len(piece) < _HEAP_FROM else self._merge_long(piece)
        try:
            return [self.vocab[part] for part in parts]
        except KeyError as error:
            raise InputError(
                f"the vocabulary has no token for the byte {error.args[0]!r}: byte-level BPE needs all 256"
            ) from None

    def _merge_short(self, piece: bytes) -> list[bytes]:
        rank = self._rank
        parts = [piece[i : i + 1] for i in range(len(piece))]
        ranks = list(map(rank, parts, parts[1:]))  # ranks[i]: of parts[i] with parts[i + 1]
        while ranks and (lowest := min(ranks)) != _NO_RANK:
            i = ranks.index(lowest)
            parts[i] += parts.pop(i + 1)
            del ranks[i]
            if i > 0:
                ranks[i - 1] = rank(parts[i - 1], parts[i])
            if i < len(ranks):
                ranks[i] = rank(parts[i], parts[i + 1])
        return parts

    def _merge_long(self, piece: bytes) -> list[bytes]:
        """The same in near-linear time: a linked list of parts, and for each rank the places that have it."""
        rank, end = self._rank, len(piece)
        parts = [piece[i : i + 1] for i in range(end)]  # b"": merged into the part to its left
        after, before = list(range(1, end + 1)), list(range(-1, end - 1))
        ranks = [*map(rank, parts, parts[1:]), _NO_RANK]  # ranks[i]: of the part at i with the next, as of now
        places: dict[int, list[int]] = {}
        for i, r in enumerate(ranks):
            places.setdefault(r, []).append(i)
        heap = sorted(places)
        while (lowest := heapq.heappop(heap)) != _NO_RANK:
            waiting = sorted(places.pop(lowest), reverse=True)
            while waiting and (not heap or heap[0] > lowest):  # a merge may make a pair of lower rank: that goes first
                i = waiting.pop()
                if ranks[i] != lowest:
                    continue  # one of the two parts has changed since
                j = after[i]
                k = after[i] = after[j]
                parts[i] += parts[j]
                parts[j], ranks[j], ranks[i] = b"", _NO_RANK, _NO_RANK
                changed = []
                if k < end:
                    before[k] = i
                    changed.append((i, rank(parts[i], parts[k])))
                if (h := before[i]) >= 0:
                    changed.append((h, rank(parts[h], parts[i])))
                for place, r in changed:
                    ranks[place] = r
                    if r in places:
                        places[r].append(place)
                    else:
                        places[r] = [place]
                        heapq.heappush(heap, r)
            if waiting:
                places[lowest] = waiting
                heapq.heappush(heap, lowest)
        return [part for part in parts if part]


def repair(text: str) -> str:
    """`text` with surrogate pairs joined and lone surrogates as U+FFFD: what can be written in UTF-8."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _rank_by_id(vocab: dict[bytes, int]) -> Callable[[bytes, bytes], int]:
    return lambda left, right: vocab.get(left + right, _NO_RANK)


def _rank_by_order(merges: Sequence[tuple[bytes, bytes]]) -> Callable[[bytes, bytes], int]:
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    return lambda left, right: ranks.get((left, right), _NO_RANK)


class _Memory(dict[str, tuple[int, ...]]):
    """Pre-token -> ids, computed when first asked for; emptied when full."""

    def __init__(self, encoder: BytePairEncoder) -> None:
        super().__init__()
        self._encode = encoder.encode_bytes
        self._room = _MEMORY

    def __missing__(self, pretoken: str) -> tuple[int, ...]:
        ids = tuple(self._encode(pretoken.encode()))
        if len(pretoken) <= _REMEMBERED_LENGTH:
            self._room -= len(pretoken) + 16
            if self._room < 0:
                self.clear()
                self._room = _MEMORY
            self[pretoken] = ids
        return ids
