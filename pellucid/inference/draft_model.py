"""A small model that guesses what a large one of the same vocabulary will say.

It has a cache of its own, in which only tokens that stand are relied on: what follows them there are guesses, and the
next ones are written over them. So a refused guess costs nothing, and a sequence that is forked or pre-empted in the
large model's cache goes on here, or is read again. It guesses for every adapter alike, by its own weights and the
adapter that is active in it, if any.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pellucid.errors import InputError
from pellucid.inference.blocks import ROOT, BlockPool
from pellucid.inference.rows import Row
from pellucid.inference.runner import Runner
from pellucid.inference.sampling import NoToken, Sampler
from pellucid.inference.sequence import Sequence
from pellucid.inference.step import Chunk, Step
from pellucid.models.adapters import active_adapter
from pellucid.models.decoder import Decoder
from pellucid.tokenizer.tokenizer import Tokenizer

MOST_GUESSES = 4


@dataclass(slots=True, eq=False)
class _Follower:
    """A sequence in the draft's cache: the first `computed` of its tokens; `full` blocks of them can be found again.
    row: draws as the sequence's own would."""

    row: Row
    table: list[int]
    computed: int
    full: int


class DraftModel:
    """Guesses by a model. See `drafts.Drafter`.

    vocab_size: how many tokens can be drawn. num_blocks, block_size, native, graphs: see `Runner`.
    max_tokens: so many are read at once.
    """

    def __init__(
        self,
        model: Decoder,
        vocab_size: int,
        num_blocks: int,
        block_size: int,
        *,
        native: bool,
        graphs: bool,
        max_tokens: int,
    ):
        if model.config.vocab_size < vocab_size:
            raise InputError(
                f"the draft model's vocabulary ends at {model.config.vocab_size - 1} and the model's at "
                f"{vocab_size - 1}: choose a draft of the same family"
            )
        self.runner = Runner(model, num_blocks, block_size, native=native, graphs=graphs)
        self.blocks = BlockPool(num_blocks, block_size)
        self._known, self._adapter = model.config.vocab_size, active_adapter(model)
        self._max_tokens, self._max_length = max_tokens, min(model.config.max_positions, num_blocks * block_size)
        self._sampler = Sampler(vocab_size, model.device)
        self._followers: dict[Sequence, _Follower] = {}

    def guess(self, wanted: Mapping[Sequence, Row], most: int) -> bool:
        behind = 0
        chunks: dict[Sequence, Chunk] = {}
        for sequence, row in wanted.items():
            left = self._max_tokens - sum(len(chunk.tokens) for chunk in chunks.values())
            follower = self._follower(sequence, row)
            behind = max(behind, len(sequence.token_ids) - follower.computed)
            if left and self._make_room(follower, len(sequence.token_ids) + most - 1):
                chunks[sequence] = self._read(sequence, follower, left)
        if chunks:
            logits = self.runner.run(Step(tuple(chunks.values()), ()))
            for sequence in chunks:
                self._register(sequence, self._followers[sequence])
            if going_on := [sequence for sequence, chunk in chunks.items() if chunk.wanted]:
                self._go_on(logits, going_on, wanted, most)
        return behind <= most + 1

    def keep(self, running: Iterable[Sequence]) -> None:
        for sequence in self._followers.keys() - set(running):
            self.blocks.release(self._followers.pop(sequence).table)

    def _follower(self, sequence: Sequence, row: Row) -> _Follower:
        if sequence not in self._followers:
            # Without what the answer's history forbids: a guess needs not be right.
            own = Row(row.params, torch.Generator(), row.stop_ids, None, None, None)
            found = self.blocks.match(sequence.token_ids, None, len(sequence.token_ids) - 1)
            self.blocks.hold(found)
            self._followers[sequence] = _Follower(own, found, len(found) * self.blocks.block_size, len(found))
        return self._followers[sequence]

    def _make_room(self, follower: _Follower, length: int) -> bool:
        """Blocks for so many tokens; False where there are none, and then it stays as it is."""
        more = self.blocks.blocks_for(length) - len(follower.table)
        if length > self._max_length or more > self.blocks.available:
            return False
        follower.table += [self.blocks.take() for _ in range(more)]
        return True

    def _read(self, sequence: Sequence, follower: _Follower, left: int) -> Chunk:
        """What it does not know of the sequence, at most `left` tokens."""
        start = min(follower.computed, len(sequence.token_ids) - 1)  # what follows the last one is wanted in any case
        tokens = sequence.token_ids[start : start + left]
        follower.computed = start + len(tokens)
        return self._chunk(tokens, start, follower, int(follower.computed == len(sequence.token_ids)))

    def _chunk(self, tokens: list[int], start: int, follower: _Follower, wanted: int) -> Chunk:
        # A prompt may have ids past the draft's vocabulary, which no tokenizer writes: there a guess may be anything.
        known = [token if token < self._known else 0 for token in tokens]
        return Chunk(known, start, follower.table, wanted, self._adapter)

    def _register(self, sequence: Sequence, follower: _Follower) -> None:
        """Full blocks can be found again."""
        size, table = self.blocks.block_size, follower.table
        for i in range(follower.full, follower.computed // size):
            tokens = sequence.token_ids[i * size : (i + 1) * size]
            table[i] = self.blocks.register(table[i], table[i - 1] if i else ROOT, tokens, None)
        follower.full = follower.computed // size

    def _go_on(self, logits: Tensor, sequences: list[Sequence], wanted: Mapping[Sequence, Row], most: int) -> None:
        """Draw and compute one token after the other. logits: after the last token of each of the sequences."""
        followers = [self._followers[one] for one in sequences]
        for follower, row in zip(followers, map(wanted.__getitem__, sequences), strict=True):
            follower.row.generator.set_state(row.generator.get_state())
            follower.row.drawn = row.drawn
        for count in range(1, most + 1):
            try:
                drawn = self._sampler(logits[:, : self._sampler.vocab_size], [one.row for one in followers]).tolist()
            except NoToken:  # its logits are no numbers: what the large model says does not depend on it
                return
            for sequence, token in zip(sequences, drawn, strict=True):
                sequence.drafted.append(token)
            if count < most:
                steps = [
                    self._chunk([token], follower.computed + count - 1, follower, 1)
                    for token, follower in zip(drawn, followers, strict=True)
                ]
                logits = self.runner.run(Step(tuple(steps), ()))


def check_same_vocabulary(tokenizer: Tokenizer, draft: Tokenizer) -> None:
    """Raises `InputError` where a token id of one is another token of the other."""
    if draft.pieces.contents == tokenizer.pieces.contents:
        return
    ids = range(max(draft.vocab_size, tokenizer.vocab_size))
    ours, theirs = tokenizer.pieces.contents, draft.pieces.contents
    first = next(number for number in ids if ours.get(number) != theirs.get(number))
    raise InputError(
        f"the draft model has another vocabulary: token {first} is {theirs.get(first)!r} there and {ours.get(first)!r} "
        "here; choose a draft of the same family"
    )
