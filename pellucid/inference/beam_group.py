"""A beam search in the engine: its beginnings are sequences, which share the blocks of the text that they share.

All beginnings are needed to say how any of them goes on: while the cache or the number of sequences keeps some of them
waiting, the others stand still. So that two searches never wait for each other's place, the younger one gives its own
back; and the oldest too, where nothing else moves: it may be in the way of an answer that was there before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from pellucid.inference.beams import Search
from pellucid.inference.events import Asked, Event, Writer, failure
from pellucid.inference.generate import Answer, Request
from pellucid.inference.scheduler import Scheduler
from pellucid.inference.sequence import Sequence
from pellucid.tokenizer.tokenizer import Tokenizer


class BeamGroup:
    """The search for the answers to one request. vocab_size: tokens from this one on are never taken.

    sequences: one for each of the search's beginnings, in their order.
    """

    def __init__(self, asked: Asked, request: Request, vocab_size: int):
        params = asked.params
        assert params.beam_width is not None
        self.search = Search(
            beams=params.beam_width, max_tokens=request.max_tokens, stop_ids=request.stop_ids,
            length_penalty=params.length_penalty, early_stopping=params.early_stopping,
        )  # fmt: skip
        self.asked, self._request, self._vocab_size = asked, request, vocab_size
        self._moves: list[tuple[int, int]] | None = None

    @property
    def sequences(self) -> list[Sequence]:
        return self.asked.sequences

    def advance(self, ready: Mapping[Sequence, Tensor]) -> int:
        """ready: the logits (V,) after each sequence of the step whose tokens are all in. Returns how many were drawn:
        none, if one of the group's is not among them."""
        self._moves = None
        if all(one in ready for one in self.sequences):
            logits = torch.stack([ready[one] for one in self.sequences])
            self._moves = self.search.advance(logits.float().log_softmax(-1)[:, : self._vocab_size])
        return len(self._moves or ())

    def accepted(self, sequence: Sequence) -> list[int] | None:
        """What `Scheduler.commit` is to be told: how the sequence goes on, if it does; None where it cannot be said."""
        if self._moves is None:
            return None
        place = self.sequences.index(sequence)
        return [token for parent, token in self._moves if parent == place][:1]

    @property
    def torn(self) -> bool:
        """After a step: whether it stands still because some of it waits to run."""
        return self._moves is None and any(one.state == "waiting" for one in self.sequences)

    def give_back(self, scheduler: Scheduler) -> None:
        """All of it waits, so that others find room."""
        for one in self.sequences:
            if one.state == "running":
                scheduler.preempt(one)

    def branch(self, scheduler: Scheduler) -> None:
        """After the commit: a beginning that goes on in several ways is forked, one that does not go on ends."""
        if self._moves is None:
            return
        going_on = {parent for parent, _ in self._moves}
        before = list(self.sequences)
        for place, one in enumerate(before):
            if place not in going_on:
                self.sequences.remove(one)
                scheduler.finish(one)
        branches: list[Sequence] = []
        for parent, token in self._moves:
            sequence = before[parent]
            branches.append(scheduler.fork(sequence, token) if sequence in branches else sequence)
        self.sequences[:] = branches

    def events(self, tokenizer: Tokenizer) -> Iterator[Event]:
        """All tokens of the best answers, once the search is over."""
        params = self.asked.params
        for index in range(params.n):
            if index >= len(self.search.whole):
                yield failure(self.asked, index, "no beam has ended: the model's logits are not numbers")
                continue
            found = self.search.whole[index]
            writer = Writer(self.asked, index, Answer(0, self._request, tokenizer))
            for token, chance in zip(found.token_ids, found.logprobs, strict=True):
                yield writer.event(writer.answer.take(token, chance if params.logprobs is not None else None, ()))
