"""Rows: `Stream` and `Whole` against slow and plain readings of the same; every token once; nothing cut or mixed."""

from __future__ import annotations

from dataclasses import fields
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pellucid.data.examples import IGNORE, Examples, Rows
from pellucid.data.packing import Stream, Whole, pack
from pellucid.errors import InputError
from pellucid.layers.batch import PADDING
from tests.data.made import in_memory, numbered

LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=25)


def masks_for(documents: list[list[int]]) -> list[list[bool]]:
    return [[token % 3 != 0 for token in document] for document in documents]


def tensors(examples: Examples) -> dict[str, Tensor]:
    return {field.name: getattr(examples, field.name) for field in fields(examples)}


def assert_same(one: Examples, other: Examples) -> None:
    for name, tensor in tensors(one).items():
        assert tensor.dtype == torch.int64
        assert torch.equal(tensor, getattr(other, name)), name


def plain_row(pieces: list[tuple[list[int], list[bool], int, int]], T: int) -> list[tuple[int, int, int, int]]:
    """(token, target, position, document) of each place in a row of pieces `(document, mask, begin, length)`."""
    row = []
    for number, (document, mask, begin, length) in enumerate(pieces):
        for position in range(length):
            place = begin + position
            more = place + 1 < len(document) and mask[place + 1]
            row.append((document[place], document[place + 1] if more else IGNORE, position, number))
    return row + [(0, IGNORE, 0, PADDING)] * (T - len(row))


def assert_row(examples: Examples, number: int, expected: list[tuple[int, int, int, int]]) -> None:
    assert list(zip(*(tensor[number].tolist() for tensor in tensors(examples).values()), strict=True)) == expected


@given(LENGTHS, st.integers(2, 40), st.integers(0, 99), st.booleans(), st.integers(1, 9), st.booleans())
def test_a_stream_is_the_ring_of_documents_cut_into_rows(
    lengths: list[int], T: int, seed: int, shuffle: bool, per_shard: int, masked: bool
) -> None:
    documents = numbered(lengths)
    masks = masks_for(documents) if masked else None
    N = sum(lengths)
    shards = in_memory(documents, masks, per_shard)
    if N < T:
        with pytest.raises(InputError, match=rf"has {N} tokens, which do not fill one row of {T}"):
            Stream(shards, T, seed)
        return
    stream = Stream(shards, T, seed, shuffle=shuffle)
    rows = N // T
    assert len(stream) == rows
    owner = [(number, place) for number, length in enumerate(lengths) for place in range(length)]
    plain = masks or [[True] * length for length in lengths]
    for epoch in range(3):
        examples = stream.read(range(epoch * rows, (epoch + 1) * rows))
        starts = examples.tokens[:, 0].tolist()  # a token's number is its place in the ring
        for number, start in enumerate(starts):
            pieces: list[tuple[list[int], list[bool], int, int]] = []
            for place in range(start, start + T):
                document, begin = owner[place % N]
                if begin == 0 or not pieces:
                    pieces.append((documents[document], plain[document], begin, 0))
                pieces[-1] = (*pieces[-1][:3], pieces[-1][3] + 1)
            assert_row(examples, number, plain_row(pieces, T))
        # Every token once, but for the N % T before the place where the epoch begins.
        read = examples.tokens.flatten().tolist()
        assert len(set(read)) == len(read) == rows * T
        begin = next(start for start in starts if N % T == 0 or (start - 1) % N not in read)
        assert sorted(read) == sorted((begin + i) % N for i in range(rows * T))
        if not shuffle:
            assert starts == [number * T for number in range(rows)]


def test_epochs_are_cut_and_ordered_differently() -> None:
    stream = Stream(in_memory(numbered([7] * 500)), 16, 0)
    starts = [stream.read(range(e * len(stream), (e + 1) * len(stream))).tokens[:, 0].tolist() for e in range(4)]
    assert len({tuple(sorted(one)) for one in starts}) == 4  # cut elsewhere
    assert len({start % 16 for one in starts for start in one}) > 4
    assert all(one != sorted(one) for one in starts)


@given(LENGTHS, st.integers(0, 40), st.integers(0, 99), st.booleans(), st.integers(1, 9))
def test_whole_documents_are_packed_once_and_never_cut(
    lengths: list[int], more: int, seed: int, shuffle: bool, per_shard: int
) -> None:
    documents = numbered(lengths)
    masks = masks_for(documents)
    T = max(max(lengths), 2) + more
    whole = Whole(in_memory(documents, masks, per_shard), T, seed, shuffle=shuffle)
    first = {document[0]: number for number, document in enumerate(documents)}
    for epoch in range(2):
        examples = whole.read(range(epoch * len(whole), (epoch + 1) * len(whole)))
        found = []
        for number in range(len(whole)):
            here = examples.documents[number]
            begins = (here != torch.cat((torch.tensor([-2]), here[:-1]))) & (here != PADDING)
            row = [first[token] for token in examples.tokens[number][begins].tolist()]
            found += row
            pieces = [(documents[one], masks[one], 0, lengths[one]) for one in row]
            assert sum(lengths[one] for one in row) <= T
            assert_row(examples, number, plain_row(pieces, T))
        assert sorted(found) == list(range(len(documents)))
    assert whole.waste == pytest.approx(1 - sum(lengths) / (len(whole) * T))


@given(st.lists(st.integers(1, 100), min_size=1, max_size=300), st.integers(0, 9))
def test_no_row_is_opened_while_another_has_room(lengths: list[int], seed: int) -> None:
    documents, rows = pack(np.array(lengths), 100, seed)
    packed = [np.array(lengths)[documents[a:b]] for a, b in pairwise(rows)]
    rooms = [100 - row.sum() for row in packed]
    assert all(row[0] > room for number, row in enumerate(packed) for room in rooms[:number])
    assert all((np.diff(row) <= 0).all() for row in packed)


def test_packing_is_best_fit_decreasing() -> None:
    """Row by row as worked out by hand: 60 opens a row, 50 another, 40 fits the first exactly, and so on."""
    lengths = np.array([10, 60, 40, 50, 30, 20])
    documents, rows = pack(lengths, 100, 0)
    packed = [lengths[documents[a:b]].tolist() for a, b in pairwise(rows)]
    assert packed == [[60, 40], [50, 30, 20], [10]]


def test_packing_of_many_wastes_little() -> None:
    lengths = np.random.default_rng(0).integers(10, 400, 5000)
    _, rows = pack(lengths, 1024, 0)
    assert (len(rows) - 1) * 1024 < lengths.sum() * 1.001 + 1024


def test_documents_of_equal_length_are_mixed() -> None:
    documents, _ = pack(np.full(1000, 10), 100, 0)
    apart = np.abs(np.diff(documents.reshape(100, 10)))
    assert np.median(apart) > 100


def too_long(how: str) -> Whole:
    documents = numbered([5, 30, 12, 40])
    return Whole(in_memory(documents, masks_for(documents)), 16, 0, too_long=how)  # type: ignore[arg-type]


def test_what_is_longer_than_the_context_is_an_error_dropped_or_cut() -> None:
    # `place` reads the shard's files, so that the sentence is tested in test_shards.py
    dropped = too_long("drop")
    assert dropped.counts == {"longer than the context": 2}
    assert sorted(dropped.shards.lengths.tolist()) == [5, 12]
    cut = too_long("cut")
    assert cut.counts == {"cut to the context": 2}
    tokens = cut.read(range(len(cut))).tokens
    assert {5, 20, 47, 62} <= set(tokens.flatten().tolist()) and not {21, 63} & set(tokens.flatten().tolist())
    with pytest.raises(InputError, match=r"every document is longer than data.context=16: raise it"):
        Whole(in_memory(numbered([20, 30])), 16, 0, too_long="drop")


@pytest.mark.parametrize("make", [Stream, Whole])
def test_a_row_is_the_same_whoever_reads_it(make: type[Rows]) -> None:
    """One batch, its halves on two ranks, one row after another, after a restart: all the same (promise D1)."""
    rng = np.random.default_rng(1)
    documents = numbered(rng.integers(1, 40, 200).tolist())
    rows = make(in_memory(documents, masks_for(documents), 30), 64, 5)
    again = make(in_memory(documents, masks_for(documents), 70), 64, 5)
    batch = list(range(len(rows) - 5, len(rows) + 7))  # over the end of an epoch
    whole = rows.read(batch)
    halves = [again.read(batch[rank::2]) for rank in range(2)]
    joined = {
        name: torch.stack((tensor, tensors(halves[1])[name]), 1).flatten(0, 1)
        for name, tensor in tensors(halves[0]).items()
    }
    assert_same(whole, Examples(**joined))
    singles = [again.read([i]) for i in reversed(batch)]
    assert_same(whole, Examples(*(torch.cat([tensors(s)[n] for s in reversed(singles)]) for n in tensors(whole))))
    assert all(tensor.shape == (0, 64) for tensor in tensors(rows.read([])).values())  # a rank without a row
    other = make(in_memory(documents, masks_for(documents)), 64, 6).read(batch)
    assert not torch.equal(other.tokens, whole.tokens)
