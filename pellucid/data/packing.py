"""Documents -> rows of T tokens, in which every document attends only within itself.

B rows, T tokens a row (the context), D documents, P pieces: a piece is what a row holds of one document. All of it is
array arithmetic, with no loop over tokens or pieces.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from pellucid.data.examples import IGNORE, Examples
from pellucid.data.order import permutation, random_number
from pellucid.data.shards import Shards
from pellucid.errors import InputError
from pellucid.layers.batch import PADDING

Ints = npt.NDArray[np.int64]
TooLong = Literal["error", "drop", "cut"]


@dataclass(frozen=True, slots=True)
class Pieces:
    """What rows hold, row after row. All (P,): the row, the document, where in it the piece begins, its tokens."""

    row: Ints
    document: Ints
    begin: Ints
    length: Ints


class Stream:
    """Rows for pretraining: the documents end to end, as a ring of N tokens, cut every T tokens.

    Epoch e begins at a place of its own in the ring, so that rows are cut elsewhere each time; it has N // T rows, and
    leaves out the N % T tokens before that place. Without `shuffle`, rows come in order, from the first token.
    A pure function of (seed, index). Raises `InputError` if the documents do not fill one row.
    """

    def __init__(self, shards: Shards, context: int, seed: int, *, shuffle: bool = True) -> None:
        self.shards, self.context, self.seed, self.shuffle = shards, context, seed, shuffle
        if shards.num_tokens < context:
            raise InputError(
                f"{shards.folder}: the text has {shards.num_tokens} tokens, which do not fill one row of {context}: "
                "give more text, or a smaller data.context"
            )
        self._ends = np.cumsum(shards.lengths)  # in the ring
        self._starts = self._ends - shards.lengths

    def __len__(self) -> int:
        return self.shards.num_tokens // self.context

    def read(self, indices: Sequence[int]) -> Examples:
        """These rows. Raises `PellucidError` if the shards were changed meanwhile."""
        self.shards.check_unchanged()
        if not len(indices):
            return no_rows(self.context)
        epochs, places = np.divmod(np.asarray(indices, np.int64), len(self))
        starts = np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            starts[here] = self._epoch(int(epoch), places[here])
        return assemble(self.shards, self._pieces(starts % self.shards.num_tokens), len(places), self.context)

    def _epoch(self, epoch: int, places: Ints) -> Ints:
        """Where the rows at these places of an epoch begin in the ring, which may be past its end."""
        if not self.shuffle:
            return places * self.context
        begin = random_number(self.shards.num_tokens, "stream", self.seed, epoch)
        return begin + permutation(len(self), "stream", self.seed, epoch)(places) * self.context

    def _pieces(self, starts: Ints) -> Pieces:
        """Rows that begin at these places of the ring, in pieces of documents."""
        N, D = self.shards.num_tokens, self.shards.num_documents
        last = starts + self.context - 1  # the last token of each row
        first_document = np.searchsorted(self._ends, starts, "right")
        last_document = np.searchsorted(self._ends, last % N, "right") + np.where(last >= N, D, 0)
        counts = last_document - first_document + 1
        row = np.repeat(np.arange(len(starts)), counts)
        behind = np.cumsum(counts)  # of each row's last piece
        document = (np.arange(behind[-1]) + np.repeat(first_document - (behind - counts), counts)) % D
        begin = np.zeros(len(row), np.int64)
        begin[behind - counts] = starts - self._starts[first_document]
        end = self.shards.lengths[document]
        end[behind - 1] = last % N - self._starts[last_document % D] + 1
        return Pieces(row, document, begin, end - begin)


class Whole:
    """Rows for fine-tuning: whole documents, packed by best fit, padded at the end of the row.

    Packing is the same in each epoch and the order of rows is not (without `shuffle` it is the same too). A pure
    function of (seed, index). too_long: what to do with a document longer than the context; `counts` says how many
    were dropped or cut. Raises `InputError` that names the document, for `too_long="error"`.
    """

    def __init__(
        self, shards: Shards, context: int, seed: int, *, shuffle: bool = True, too_long: TooLong = "error"
    ) -> None:
        self.context, self.seed, self.shuffle = context, seed, shuffle
        self.counts: Counter[str] = Counter()
        self.shards = self._fitting(shards, too_long)
        self._documents, self._rows = pack(self.shards.lengths, context, seed)

    def __len__(self) -> int:
        return len(self._rows) - 1

    @property
    def waste(self) -> float:
        """Which part of the rows is padding."""
        return 1 - self.shards.num_tokens / (len(self) * self.context)

    def read(self, indices: Sequence[int]) -> Examples:
        """These rows. Raises `PellucidError` if the shards were changed meanwhile."""
        self.shards.check_unchanged()
        if not len(indices):
            return no_rows(self.context)
        epochs, places = np.divmod(np.asarray(indices, np.int64), len(self))
        if self.shuffle:
            for epoch in np.unique(epochs):
                here = epochs == epoch
                places[here] = permutation(len(self), "whole", self.seed, int(epoch))(places[here])
        first, behind = self._rows[places], self._rows[places + 1]
        counts = behind - first
        row = np.repeat(np.arange(len(places)), counts)
        document = self._documents[np.arange(len(row)) + np.repeat(first - (np.cumsum(counts) - counts), counts)]
        pieces = Pieces(row, document, np.zeros_like(document), self.shards.lengths[document])
        return assemble(self.shards, pieces, len(places), self.context)

    def _fitting(self, shards: Shards, too_long: TooLong) -> Shards:
        longer = np.flatnonzero(shards.lengths > self.context)
        if not len(longer):
            return shards
        if too_long == "error":
            number = int(longer[0])
            raise InputError(
                f"{shards.place(number)}: {shards.lengths[number]} tokens, longer than the context of {self.context} "
                f"({len(longer)} such in all): raise data.context, or choose data.too_long=drop or cut"
            )
        if too_long == "cut":
            self.counts["cut to the context"] = len(longer)
            return shards.select(shards.starts, np.minimum(shards.lengths, self.context))
        self.counts["longer than the context"] = len(longer)
        kept = shards.lengths <= self.context
        if not kept.any():
            raise InputError(f"{shards.folder}: every document is longer than data.context={self.context}: raise it")
        return shards.select(shards.starts[kept], shards.lengths[kept])


def pack(lengths: Ints, context: int, seed: int) -> tuple[Ints, Ints]:
    """Documents into rows by best fit, longest first: at most 11/9 of the fewest rows, plus one (Johnson 1973).

    Returns the documents, row after row, and (rows + 1,) where in them each row begins. Equal lengths come in an order
    drawn from `seed`, so that rows mix what lay together in the source.
    """
    D = len(lengths)
    drawn = permutation(D, "pack", seed)(np.arange(D))
    order = drawn[np.argsort(-lengths[drawn], kind="stable")]
    row_of = np.empty(D, np.int64)
    open_rows: list[list[int]] = [[] for _ in range(context + 1)]  # by the room that they have
    rooms = 0  # bit r is set where open_rows[r] has any
    rows = 0
    for place, length in enumerate(lengths[order].tolist()):
        fits = rooms >> length
        if fits:
            room = length + (fits & -fits).bit_length() - 1  # the least that is enough
            row = open_rows[room].pop()
            if not open_rows[room]:
                rooms ^= 1 << room
        else:
            room, row = context, rows
            rows += 1
        left = room - length
        if left:
            open_rows[left].append(row)
            rooms |= 1 << left
        row_of[place] = row
    by_row = np.argsort(row_of, kind="stable")
    return order[by_row], np.searchsorted(row_of[by_row], np.arange(rows + 1))


def no_rows(T: int) -> Examples:
    """What a process reads that has no row of a batch."""
    return Examples(*(torch.empty(0, T, dtype=torch.int64) for _ in range(4)))


def assemble(shards: Shards, pieces: Pieces, B: int, T: int) -> Examples:
    """The rows that consist of `pieces`, each of which begins where the one before it in its row ends."""
    n = int(pieces.length.sum())
    behind = np.cumsum(pieces.length)
    within = np.arange(n) - np.repeat(behind - pieces.length, pieces.length)  # place in the piece
    first_of_row = np.searchsorted(pieces.row, np.arange(B))
    used = np.add.reduceat(pieces.length, first_of_row)  # (B,), tokens of each row
    to = np.arange(n) + np.repeat(np.arange(B) * T - (np.cumsum(used) - used), used)  # place in the (B, T) result
    number = np.repeat(np.arange(len(pieces.row)) - first_of_row[pieces.row], pieces.length)

    start = shards.starts[pieces.document] + pieces.begin
    place = within + np.repeat(start, pieces.length)
    end = np.repeat(shards.starts[pieces.document] + shards.lengths[pieces.document], pieces.length)
    tokens = shards.tokens(place)
    following = np.minimum(place + 1, end - 1)
    learnt = (place + 1 < end) & shards.supervised(following)
    targets = np.where(learnt, shards.tokens(following), IGNORE)

    def rows(values: Ints, padding: int) -> torch.Tensor:
        if n == B * T:
            return torch.from_numpy(values.reshape(B, T))
        full = np.full(B * T, padding, np.int64)
        full[to] = values
        return torch.from_numpy(full.reshape(B, T))

    return Examples(rows(tokens, 0), rows(targets, IGNORE), rows(within, 0), rows(number, PADDING))
