"""Answers to a prompt in one row, each once, and which of them is better than which: what a reward model reads.

All pairs of a prompt are learnt from together. Were they spread over an epoch, an answer would be seen once for every
pair that it is in, and learnt by heart (Ouyang et al. 2022, section 3.5). B rows, T tokens a row, G prompts, A answers,
P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from pellucid.data.examples import IGNORE, Examples
from pellucid.data.order import permutation
from pellucid.data.packing import Ints, Pieces, assemble, no_rows, pack
from pellucid.data.pairs import Pairs
from pellucid.layers.batch import PADDING, Batch


@dataclass(frozen=True, slots=True)
class RankedExamples:
    """Rows of answers, each a document with its prompt before it: a batch whose units are prompts.

    tokens, positions, documents: (B, T), as `Examples` has them. prompts: (G,), the row of each, in order.
    ends: (A, 2), row and place of each answer's last token, in order of the rows. lengths: (A,), how many tokens the
    answer has itself. pairs: (P, 2), the better and the worse answer. shares: (P,) float32, 1 / the number of pairs of
    its prompt.
    """

    tokens: Tensor
    positions: Tensor
    documents: Tensor
    prompts: Tensor
    ends: Tensor
    lengths: Tensor
    pairs: Tensor
    shares: Tensor

    @property
    def supervised(self) -> int:
        """How many prompts there are."""
        return len(self.prompts)

    @property
    def real(self) -> int:
        """How many tokens are no padding."""
        return int((self.documents != PADDING).sum())

    @property
    def batch(self) -> Batch:
        return Batch(self.positions, self.documents)

    @property
    def examples(self) -> Examples:
        """The same rows, to be looked at: the tokens of the answers are what is learnt from."""
        targets = torch.full_like(self.tokens, IGNORE)
        for (row, end), length in zip(self.ends.tolist(), self.lengths.tolist(), strict=True):
            said = slice(end - length + 1, end + 1)
            targets[row, end - length : end] = self.tokens[row, said]
        return Examples(self.tokens, targets, self.positions, self.documents)

    def to(self, device: torch.device) -> RankedExamples:
        """On another device."""
        return RankedExamples(*(getattr(self, name).to(device) for name in self.__slots__))

    def split(self, rows: int) -> list[RankedExamples]:
        """In parts of at most `rows` rows; a prompt is never parted."""
        return [self._rows(start, start + rows) for start in range(0, len(self.tokens), rows)]

    def heaviest(self) -> RankedExamples:
        """These rows: however many answers they hold, every token of them is computed."""
        return self

    def _rows(self, start: int, stop: int) -> RankedExamples:
        first, behind = (int((self.ends[:, 0] < row).sum()) for row in (start, stop))
        pairs = (self.pairs[:, 0] >= first) & (self.pairs[:, 0] < behind)
        prompts = (self.prompts >= start) & (self.prompts < stop)
        shift = torch.tensor([start, 0], device=self.ends.device)
        return RankedExamples(
            self.tokens[start:stop],
            self.positions[start:stop],
            self.documents[start:stop],
            self.prompts[prompts] - start,
            self.ends[first:behind] - shift,
            self.lengths[first:behind],
            self.pairs[pairs] - first,
            self.shares[pairs],
        )


@dataclass(slots=True)
class Ranking:
    """The answers of one prompt, by their documents, and its pairs (better, worse) among them."""

    answers: list[int] = field(default_factory=list)
    pairs: list[tuple[int, int]] = field(default_factory=list)


class Rankings:
    """Rows of whole prompts with all their answers, packed by best fit.

    pairs: what is compared, fitted to the context already. A row holds two answers of full length, or all answers of
    the prompt that has the most, where those are longer. An answer ends with the token that ends the assistant's turn.
    A pure function of (seed, index), packing the same in each epoch; without `shuffle` the order too.
    """

    def __init__(self, pairs: Pairs, seed: int, *, shuffle: bool = True) -> None:
        self.pairs, self.seed, self.shuffle = pairs, seed, shuffle
        lengths, self._said = self._measure()
        self.shards = pairs.shards.select(pairs.shards.starts, lengths)
        self.rankings = self._group()
        sizes = np.array([sum(int(lengths[one]) for one in ranking.answers) for ranking in self.rankings])
        self.context = max(pairs.context, int(sizes.max()))
        self.num_tokens = int(sizes.sum())
        self._packed, self._rows = pack(sizes, self.context, seed)

    def __len__(self) -> int:
        return len(self._rows) - 1

    @property
    def num_answers(self) -> int:
        """Of all prompts, each answer once."""
        return sum(len(ranking.answers) for ranking in self.rankings)

    @property
    def num_pairs(self) -> int:
        return self.pairs.num_pairs

    @property
    def waste(self) -> float:
        """Which part of the rows is padding."""
        return 1 - self.num_tokens / (len(self) * self.context)

    def read(self, indices: Sequence[int]) -> RankedExamples:
        """These rows. Raises `PellucidError` if the shards were changed meanwhile."""
        self.shards.check_unchanged()
        if not len(indices):
            return self._examples([])
        epochs, places = np.divmod(np.asarray(indices, np.int64), len(self))
        if self.shuffle:
            for epoch in np.unique(epochs):
                here = epochs == epoch
                places[here] = permutation(len(self), "rankings", self.seed, int(epoch))(places[here])
        return self._examples([self._packed[self._rows[row] : self._rows[row + 1]].tolist() for row in places])

    def texts(self, ranking: Ranking) -> tuple[Ints, list[Ints]]:
        """The tokens of a prompt, and of each answer to it."""
        whole = [self.shards.document(one)[0] for one in ranking.answers]
        begins = [len(ids) - int(self._said[one]) for ids, one in zip(whole, ranking.answers, strict=True)]
        return whole[0][: begins[0]], [ids[begin:] for ids, begin in zip(whole, begins, strict=True)]

    def _examples(self, rows: list[list[int]]) -> RankedExamples:
        """Rows that hold these prompts."""
        held = [(row, self.rankings[number]) for row, numbers in enumerate(rows) for number in numbers]
        document = np.array([one for _, ranking in held for one in ranking.answers], np.int64)
        row = np.array([row for row, ranking in held for _ in ranking.answers], np.int64)
        lengths = self.shards.lengths[document]
        pieces = Pieces(row, document, np.zeros_like(document), lengths)
        made: Examples = assemble(self.shards, pieces, len(rows), self.context) if held else no_rows(self.context)
        behind = np.cumsum(lengths)
        before = (behind - lengths)[np.searchsorted(row, row)] if held else behind  # tokens in the rows above
        firsts = accumulate((len(ranking.answers) for _, ranking in held), initial=0)
        pairs = [
            (first + i, first + j) for first, (_, ranking) in zip(firsts, held, strict=False) for i, j in ranking.pairs
        ]
        return RankedExamples(
            made.tokens,
            made.positions,
            made.documents,
            torch.tensor([row for row, _ in held], dtype=torch.int64),
            torch.from_numpy(np.stack([row, behind - before - 1], 1)),
            torch.from_numpy(self._said[document]),
            torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2),
            torch.tensor([1 / len(ranking.pairs) for _, ranking in held for _ in ranking.pairs], dtype=torch.float32),
        )

    def _measure(self) -> tuple[Ints, Ints]:
        """Of each document its tokens through the last one that the assistant says, and how many it says."""
        documents = [self.pairs.shards.document(number) for number in range(self.pairs.shards.num_documents)]
        behind = [len(said) - int(said[::-1].argmax()) for _, said in documents]
        return np.array(behind), np.array(
            [end - int(said.argmax()) for end, (_, said) in zip(behind, documents, strict=True)]
        )

    def _group(self) -> list[Ranking]:
        """The pairs by prompt, in order of their first; an answer that is there several times is one."""
        rankings: dict[bytes, tuple[Ranking, dict[bytes, int]]] = {}
        for number in range(self.pairs.num_pairs):
            better = 2 * number + int(self.pairs.turned[number])
            ids, _ = self.shards.document(better)
            prompt = ids[: len(ids) - int(self._said[better])].tobytes()
            ranking, known = rankings.setdefault(prompt, (Ranking(), {}))
            places = []
            for document in (better, 4 * number + 1 - better):
                place = known.setdefault(self.shards.document(document)[0].tobytes(), len(ranking.answers))
                if place == len(ranking.answers):
                    ranking.answers.append(document)
                places.append(place)
            ranking.pairs.append((places[0], places[1]))
        return [ranking for ranking, _ in rankings.values()]
