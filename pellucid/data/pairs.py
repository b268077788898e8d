"""Preferences in rows: the prompt with the better answer and the prompt with the worse one, documents of their own.

Neither attends to the other (promise D3), and a pair is never parted. B rows, T tokens a row, P pairs, S sequences:
two a pair, the better one first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pellucid.data.examples import IGNORE, Examples
from pellucid.data.order import permutation
from pellucid.data.packing import Ints, Pieces, TooLong, assemble, no_rows, pack
from pellucid.data.shards import Shards
from pellucid.errors import InputError
from pellucid.layers.batch import PADDING, Batch

Floats = npt.NDArray[np.float32]

LONGER = "pairs longer than the context"
PROMPT = "pairs whose prompt alone exceeds the context"
ALIKE = "pairs whose answers are equal once they are cut"
CUT = "pairs cut to the context"


@dataclass(frozen=True, slots=True)
class PairExamples:
    """Rows of pairs: a batch whose units are pairs.

    tokens, targets, positions, documents: (B, T), as `Examples` has them; only the answers are learnt from.
    places: (P, 2), the row of each pair, and the number of its better answer among the documents of that row; the
    worse one is the next. numbers: (P,), which pairs of `Pairs` these are.
    reference: (P, 2) float32, the log-probabilities of both answers under the reference policy, or None. What more
        columns hold is between those who write and read them.
    """

    tokens: Tensor
    targets: Tensor
    positions: Tensor
    documents: Tensor
    places: Tensor
    numbers: Tensor
    reference: Tensor | None = None

    @property
    def supervised(self) -> int:
        """How many pairs there are."""
        return len(self.places)

    @property
    def real(self) -> int:
        """How many tokens are no padding."""
        return int((self.documents != PADDING).sum())

    @property
    def batch(self) -> Batch:
        return Batch(self.positions, self.documents)

    @property
    def sequences(self) -> Tensor:
        """(2 P, 2), row and number of each answer: the better one of the first pair, its worse one, and so on."""
        worse = self.places + torch.tensor([0, 1], device=self.places.device)
        return torch.stack([self.places, worse], 1).flatten(0, 1)

    def to(self, device: torch.device) -> PairExamples:
        """On another device."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {name: None if x is None else x.to(device) for name, x in values.items()}
        return PairExamples(**moved)

    def split(self, rows: int) -> list[PairExamples]:
        """In parts of at most `rows` rows."""
        return [self._rows(start, start + rows) for start in range(0, len(self.tokens), rows)]

    def heaviest(self) -> PairExamples:
        """These rows, every token of them learnt from."""
        every = torch.where(self.targets == IGNORE, 0, self.targets)
        return replace(self, targets=every)

    def _rows(self, start: int, stop: int) -> PairExamples:
        here = (self.places[:, 0] >= start) & (self.places[:, 0] < stop)
        return PairExamples(
            self.tokens[start:stop],
            self.targets[start:stop],
            self.positions[start:stop],
            self.documents[start:stop],
            self.places[here] - torch.tensor([start, 0], device=self.places.device),
            self.numbers[here],
            None if self.reference is None else self.reference[here],
        )


class Pairs:
    """Rows of whole pairs, packed by best fit. A row holds twice `length` tokens, so that it holds any pair.

    shards: documents in twos, as `data.documents.pair_documents` makes them. length: what prompt and answer may have
    in tokens; `counts` says how many pairs were dropped or cut for it (promise A3).
    too_long: what becomes of longer ones; a pair whose prompt leaves no room for an answer is dropped even by "cut".
    flipped: this fraction of the pairs is turned round, the same ones always: noise, to see what a loss makes of it.
    A pure function of (seed, index), packing the same in each epoch. Raises `InputError` that names the pair, for
    `too_long="error"`, and where no pair is left.
    """

    def __init__(
        self,
        shards: Shards,
        length: int,
        seed: int,
        *,
        shuffle: bool = True,
        too_long: TooLong = "error",
        flipped: float = 0.0,
    ) -> None:
        self.length, self.context, self.seed, self.shuffle = length, 2 * length, seed, shuffle
        self.counts: Counter[str] = Counter()
        self.shards = self._fitting(shards, too_long)
        self.num_pairs = self.shards.num_documents // 2
        self.turned = self._turned(flipped)  # (P,), which pairs are turned round
        self.reference: Floats | None = None  # of all pairs: see `PairExamples`
        digest = sha256(self.shards.starts.tobytes() + self.shards.lengths.tobytes() + self.turned.tobytes())
        self.content = f"{shards.content}-{digest.hexdigest()}"  # equal where the same pairs are read
        self._packed, self._rows = pack(self.shards.lengths.reshape(-1, 2).sum(1), self.context, seed)

    def __len__(self) -> int:
        return len(self._rows) - 1

    @property
    def waste(self) -> float:
        """Which part of the rows is padding."""
        return 1 - self.shards.num_tokens / (len(self) * self.context)

    def read(self, indices: Sequence[int]) -> PairExamples:
        """These rows. Raises `PellucidError` if the shards were changed meanwhile."""
        self.shards.check_unchanged()
        if not len(indices):
            return self._examples(np.empty(0, np.int64), np.empty(0, np.int64), 0)
        epochs, places = np.divmod(np.asarray(indices, np.int64), len(self))
        if self.shuffle:
            for epoch in np.unique(epochs):
                here = epochs == epoch
                places[here] = permutation(len(self), "pairs", self.seed, int(epoch))(places[here])
        first, counts = self._rows[places], np.diff(self._rows)[places]
        row = np.repeat(np.arange(len(places)), counts)
        within = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
        return self._examples(self._packed[np.repeat(first, counts) + within], row, len(places))

    def answers(self, number: int) -> tuple[tuple[Ints, npt.NDArray[np.bool_]], tuple[Ints, npt.NDArray[np.bool_]]]:
        """The tokens of both documents of a pair, and which of them are learnt from; the better one first."""
        one, other = 2 * number + int(self.turned[number]), 2 * number + int(not self.turned[number])
        return self.shards.document(one), self.shards.document(other)

    def prompt(self, number: int) -> bytes:
        """What stands before both answers of a pair: equal prompts, and no others, have the same."""
        ids, said = self.answers(number)[0]
        return ids[: said.argmax()].tobytes()

    def _examples(self, numbers: Ints, row: Ints, B: int) -> PairExamples:
        """The rows that consist of these pairs, each in its row."""
        place = np.arange(len(row)) - np.searchsorted(row, row)  # among the pairs of the row
        better = 2 * numbers + self.turned[numbers]
        document = np.stack([better, 4 * numbers + 1 - better], 1).reshape(-1)
        pieces = Pieces(np.repeat(row, 2), document, np.zeros_like(document), self.shards.lengths[document])
        made: Examples = assemble(self.shards, pieces, B, self.context) if B else no_rows(self.context)
        return PairExamples(
            made.tokens,
            made.targets,
            made.positions,
            made.documents,
            torch.from_numpy(np.stack([row, 2 * place], 1)),
            torch.from_numpy(numbers),
            None if self.reference is None else torch.from_numpy(self.reference[numbers]),
        )

    def _turned(self, fraction: float) -> Ints:
        turned = np.zeros(self.num_pairs, np.int64)
        count = round(fraction * self.num_pairs)
        if count:
            turned[permutation(self.num_pairs, "noise", self.seed)(np.arange(count))] = 1
        return turned

    def _fitting(self, shards: Shards, too_long: TooLong) -> Shards:
        longer: npt.NDArray[np.bool_] = np.any((shards.lengths > self.length).reshape(-1, 2), axis=1)  # (P,)
        if not longer.any():
            return shards
        numbers = np.flatnonzero(longer)
        crowded = np.zeros(len(longer), np.bool_)
        crowded[numbers] = [self._prompt(shards, int(number)) >= self.length for number in numbers]
        if too_long == "error":
            self._complain(shards, int(numbers[0]), bool(crowded[numbers[0]]), len(numbers))
        self.counts[PROMPT] = int(crowded.sum())
        kept = ~crowded
        lengths = np.minimum(shards.lengths, self.length)
        if too_long == "drop":
            self.counts[LONGER] = int((longer & ~crowded).sum())
            kept &= ~longer
        else:
            alike = [self._alike(shards, lengths, int(number)) for number in numbers]
            kept[numbers] &= ~np.array(alike)
            self.counts[ALIKE] = int((longer & ~crowded & ~kept).sum())
            self.counts[CUT] = int((longer & kept).sum())
        if not kept.any():
            raise InputError(f"{shards.folder}: every pair is longer than data.context={self.length}: raise it")
        both = np.repeat(kept, 2)
        return shards.select(shards.starts[both], lengths[both])

    def _prompt(self, shards: Shards, number: int) -> int:
        """The tokens before the answers of a pair."""
        return max(int(shards.document(document)[1].argmax()) for document in (2 * number, 2 * number + 1))

    def _alike(self, shards: Shards, lengths: Ints, number: int) -> bool:
        one, other = (shards.document(document)[0][: lengths[document]] for document in (2 * number, 2 * number + 1))
        return np.array_equal(one, other)

    def _complain(self, shards: Shards, number: int, crowded: bool, count: int) -> None:
        place = shards.place(2 * number)
        most = int(shards.lengths[2 * number : 2 * number + 2].max())
        what = f"{most} tokens, longer than the context of {self.length}"
        if crowded:
            what = f"the prompt alone has {self._prompt(shards, number)} tokens, and the context holds {self.length}"
        raise InputError(
            f"{place}: {what} ({count} such pairs in all): raise data.context, or choose data.too_long=drop or cut"
        )


def split_pairs(shards: Shards, fraction: float, seed: int) -> tuple[Shards, Shards | None]:
    """Pairs to train on and pairs held out: about `fraction` of the prompts, at least one, with all of their pairs.

    A pure function of the documents, `fraction` and `seed`. Raises `InputError` where there is a single prompt.
    """
    if fraction == 0:
        return shards, None
    prompts: dict[bytes, int] = {}
    whose = np.empty(shards.num_documents // 2, np.int64)
    for number in range(len(whose)):
        ids, said = shards.document(2 * number)
        whose[number] = prompts.setdefault(ids[: said.argmax()].tobytes(), len(prompts))
    if len(prompts) < 2:
        raise InputError(
            f"{shards.folder}: pairs about a single prompt cannot be split: give data.validation, "
            "or data.validation_fraction=0"
        )
    count = min(max(round(len(prompts) * fraction), 1), len(prompts) - 1)
    held = np.isin(whose, permutation(len(prompts), "split", seed)(np.arange(count))).repeat(2)
    one, other = (shards.select(shards.starts[which], shards.lengths[which]) for which in (~held, held))
    return one, other
