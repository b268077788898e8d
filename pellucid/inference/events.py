"""What the engine keeps of a request while it is under way, and what it says of each token."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Several
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from pellucid.inference.generate import Answer, TokenEvent
from pellucid.inference.params import SamplingParams
from pellucid.inference.sequence import Sequence

if TYPE_CHECKING:
    from pellucid.inference.beam_group import BeamGroup

Score = tuple[float, tuple[tuple[int, float], ...]]


@dataclass(frozen=True, slots=True)
class Event:
    """One token of one answer of request `id`; see `generate.TokenEvent`.

    index: which of its n answers. finish_reason: "error" too, where no token can be drawn; finish_detail says why.
    prompt_logprobs: with the first event of a request that asks for them: (ln P, alternatives) of each token of the
    prompt but the first. among: how many tokens this one was drawn among; None unless the engine says so.
    """

    id: int
    index: int
    token_id: int
    text: str
    logprob: float | None
    alternatives: tuple[tuple[int, float], ...]
    finish_reason: Literal["stop", "length", "error"] | None
    finish_detail: str | int | None
    prompt_logprobs: tuple[Score, ...] | None = None
    among: int | None = None


@dataclass(slots=True, eq=False)
class Asked:
    """A request. `Engine.prepare` makes it, and `Engine.queue` gives it its number.

    prompt: the sequence that it begins as. left: answers that are not done; sequences: theirs, once it is queued.
    scores: of the prompt's tokens, until they have been shown. held: the events of `best_of` answers, which are shown
    when all are known. writers: of its answers, at the beginning; none where `beams` looks for them.
    """

    prompt: Sequence
    params: SamplingParams
    left: int
    id: int = -1
    scores: list[Score] | None = None
    held: list[list[Event]] | None = None
    writers: list[Writer] = field(default_factory=list)
    beams: BeamGroup | None = None
    sequences: list[Sequence] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Writer:
    """An answer under way, and the request that it belongs to.

    row: of the step's logits, the one to draw from next. guesses: drafted for it in this step, still to be judged.
    """

    asked: Asked
    index: int
    answer: Answer
    row: int = 0
    guesses: list[int] = field(default_factory=list)

    def event(self, token: TokenEvent, among: int | None = None) -> Event:
        """The same token as the engine gives it."""
        return Event(
            self.asked.id, self.index, token.token_id, token.text, token.logprob, token.alternatives,
            token.finish_reason, token.finish_detail, among=among,
        )  # fmt: skip


def failure(asked: Asked, index: int, why: str) -> Event:
    """The last event of an answer that cannot go on."""
    return Event(asked.id, index, 0, "", None, (), "error", why)


def seed_of(params: SamplingParams, index: int) -> int:
    """The seed of one of the answers to a request."""
    return ((params.seed or 0) + index) % 2**63


def best(answers: Several[list[Event]], params: SamplingParams) -> Iterator[Event]:
    """The events of the `n` answers whose tokens are the most likely on average, the best one first; last, those that
    failed."""

    def merit(answer: list[Event]) -> tuple[bool, float]:
        return answer[-1].finish_reason != "error", sum(event.logprob or 0.0 for event in answer) / len(answer)

    for index, answer in enumerate(sorted(answers, key=merit, reverse=True)[: params.n]):
        for event in answer:
            plain = event if params.logprobs is not None else replace(event, logprob=None, alternatives=())
            yield replace(plain, index=index)
