"""The engine: many requests under way at once, a step of all of them at a time.

A step is schedule -> run -> draw -> commit. The scheduler sees lengths and blocks alone, the runner tensors alone, the
sampler logits alone; what belongs to a request as a whole (its answers, the text, when it ends) is here. Not safe for
threads: one drives it.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator
from collections.abc import Sequence as Several
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from pellucid.inference.blocks import BlockPool
from pellucid.inference.drafts import Pace, PromptLookup
from pellucid.inference.filters import log_probabilities
from pellucid.inference.generate import Answer, Request, TokenEvent, chances_of, drawable, prepare
from pellucid.inference.params import SamplingParams
from pellucid.inference.room import blocks_that_fit
from pellucid.inference.runner import Runner
from pellucid.inference.sampling import NoToken, Sampler
from pellucid.inference.scheduler import Scheduler
from pellucid.inference.sequence import Sequence
from pellucid.inference.step import Chunk
from pellucid.models.decoder import Decoder

if TYPE_CHECKING:
    from pellucid.tokenizer.tokenizer import Tokenizer

BLOCK_SIZE = 16  # tokens: small, so that little is wasted
MAX_SEQUENCES = 64
MAX_TOKENS_PER_STEP = 512

Score = tuple[float, tuple[tuple[int, float], ...]]


@dataclass(frozen=True, slots=True)
class Event:
    """One token of one answer of request `id`; see `generate.TokenEvent`.

    index: which of its n answers. finish_reason: "error" too, where no token can be drawn; finish_detail says why.
    prompt_logprobs: with the first event of a request that asks for them: (ln P, alternatives) of each token of the
    prompt but the first.
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


@dataclass(slots=True)
class _Asked:
    """A request under way.

    left: answers that are not done; sequences: theirs. scores: of the prompt's tokens, until they have been shown.
    held: the events of `best_of` answers, which are shown when all are known.
    """

    id: int
    params: SamplingParams
    left: int
    scores: list[Score] | None
    held: list[list[Event]] | None
    sequences: list[Sequence] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Writer:
    """An answer under way, and the request that it belongs to.

    row: of the step's logits, the one to draw from next. guesses: drafted for it in this step, still to be judged.
    """

    asked: _Asked
    index: int
    answer: Answer
    lookup: PromptLookup | None
    row: int = 0
    guesses: list[int] = field(default_factory=list)


class Engine:
    """A model that answers many requests at once. See `step`.

    num_blocks: of the cache; None: as many as all sequences can fill, or half of the free memory holds.
    max_sequences, max_tokens_per_step: see `Scheduler`. native: see `Runner`.
    guesses: so many tokens at most are guessed ahead from the text before, and judged together, where that pays (see
    `drafts`); 0: none.
    """

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        *,
        num_blocks: int | None = None,
        block_size: int = BLOCK_SIZE,
        max_sequences: int = MAX_SEQUENCES,
        max_tokens_per_step: int = MAX_TOKENS_PER_STEP,
        native: bool = True,
        guesses: int = 0,
    ):
        context = model.config.max_positions
        if num_blocks is None:
            most = max_sequences * math.ceil(context / block_size)
            num_blocks = blocks_that_fit(model.config, model.dtype, model.device, block_size, most)
        self.model, self.tokenizer = model, tokenizer
        self.vocab_size = model.config.vocab_size
        self.runner = Runner(model, num_blocks, block_size, native=native)
        self.scheduler = Scheduler(
            BlockPool(num_blocks, block_size), max_tokens_per_step=max_tokens_per_step, max_sequences=max_sequences,
            max_length=context,
        )  # fmt: skip
        self.max_length = self.scheduler.max_length
        self.steps = self.tokens_read = self.tokens_drawn = self.tokens_guessed = self.guesses_taken = 0
        self._guesses, self._pace = guesses, Pace()
        self._sampler = Sampler(drawable(model, tokenizer), model.device)
        self._numbers = itertools.count()
        self._asked: dict[int, _Asked] = {}
        self._writers: dict[Sequence, list[_Writer]] = {}  # until its first token a prompt has all of its answers

    @property
    def busy(self) -> bool:
        """Whether any request is under way."""
        return bool(self._asked)

    def stats(self) -> dict[str, float]:
        """The numbers of this moment, and what was counted since the start."""
        return asdict(self.scheduler.stats()) | {
            "steps": self.steps,
            "tokens_read": self.tokens_read,
            "tokens_drawn": self.tokens_drawn,
            "tokens_guessed": self.tokens_guessed,
            "guesses_taken": self.guesses_taken,
        }

    def add(self, prompt: Several[int], params: SamplingParams) -> int:
        """Queue a request for `params.n` answers to a prompt of token ids; its id, which its events have.

        Raises `InputError` for what cannot be answered, such as a prompt without room for an answer.
        """
        params = params.seeded()
        several = params.best_of if params.best_of is not None else params.n
        held: list[list[Event]] | None = None if several == params.n else [[] for _ in range(several)]
        asked = _Asked(next(self._numbers), params, several, None if params.prompt_logprobs is None else [], held)
        answers = [Answer(0, one, self.tokenizer) for one in self._requests(prompt, params, several)]
        sequence = Sequence(prompt, wanted_from=None if asked.scores is None else 0)
        self.scheduler.add(sequence)
        self._asked[asked.id] = asked
        self._writers[sequence] = [
            _Writer(asked, index, answer, PromptLookup() if self._guesses else None)
            for index, answer in enumerate(answers)
        ]
        asked.sequences.append(sequence)
        return asked.id

    def abort(self, id: int) -> None:  # noqa: A002
        """Nobody wants this request any more: what it holds is free at once. One that has ended stays as it is."""
        asked = self._asked.pop(id, None)
        for sequence in asked.sequences if asked else ():
            self.scheduler.finish(sequence)
            del self._writers[sequence]

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Compute once for all that is under way; the tokens that came of it, none while prompts are read."""
        started, guessing = time.perf_counter(), self._guess()
        step, sequences = self.scheduler.schedule()
        if not step.chunks:
            return []
        logits = self.runner.run(step)  # (sum of wanted, V)
        self.steps += 1
        self.tokens_read += sum(len(chunk.tokens) for chunk in step.chunks)
        turns: list[_Writer] = []
        row = 0
        for chunk, sequence in zip(step.chunks, sequences, strict=True):
            self._score(chunk, sequence, logits[row : row + chunk.wanted])
            row += chunk.wanted
            guesses = chunk.start + len(chunk.tokens) - len(sequence.token_ids)
            if guesses >= 0:  # all that is known is in
                for writer in self._writers[sequence]:
                    writer.row, writer.guesses = row - 1 - guesses, chunk.tokens[len(chunk.tokens) - guesses :]
                    turns.append(writer)
        drawn = self._draw(logits, turns)
        first = [drawn.get(self._writers[sequence][0], []) for sequence in sequences]
        self.scheduler.commit([[event.token_id for event in events] for events in first])
        shown = list(self._take(drawn, sequences))
        if self._guesses and len(turns) == len(sequences):  # no step that reads prompts
            self._pace.note(guessing, sum(map(len, drawn.values())), time.perf_counter() - started)
        return shown

    def _guess(self) -> bool:
        """Draft for every answer that is being written, if that pays; whether it was done."""
        if not self._guesses or not self._pace.choose():
            return False
        for sequence in self.scheduler.running:
            own, *others = self._writers[sequence]
            if sequence.pending == 1 and not others and own.lookup is not None:
                sequence.drafted = own.lookup.guess(sequence.token_ids, self._guesses)
        return True

    def _requests(self, prompt: Several[int], params: SamplingParams, several: int) -> Iterator[Request]:
        """The same prompt once for each answer, each with a seed of its own."""
        counted = params.logprobs if several == params.n else params.logprobs or 0
        for index in range(several):
            own = params.with_({"n": 1, "best_of": None, "seed": seed_of(params, index), "logprobs": counted})
            [one] = prepare(self.model, self.tokenizer, [prompt], own)
            room = self.max_length - len(prompt)
            yield one if one.max_tokens <= room else replace(one, max_tokens=max(1, room), max_detail="context")

    def _score(self, chunk: Chunk, sequence: Sequence, logits: Tensor) -> None:
        """The log-probabilities of a prompt's own tokens, where they are asked for. logits: (wanted, V)."""
        asked = self._writers[sequence][0].asked
        if asked.scores is None or asked.params.prompt_logprobs is None:
            return
        first = chunk.start + len(chunk.tokens) - chunk.wanted  # the position of the first row of logits
        following = sequence.token_ids[first + 1 : min(first + 1 + chunk.wanted, sequence.prompt_length)]
        if following:
            tokens = torch.tensor(following, device=logits.device)
            chosen, values, ids = log_probabilities(logits[: len(following)], tokens, asked.params.prompt_logprobs)
            for own, best, of in zip(chosen.tolist(), values.tolist(), ids.tolist(), strict=True):
                asked.scores.append((own, tuple(zip(of, best, strict=True))))

    def _draw(self, logits: Tensor, turns: list[_Writer]) -> dict[_Writer, list[Event]]:
        """The next token of each; more for those whose guesses are drawn. An error for those that have none to draw."""
        drawn: dict[_Writer, list[Event]] = {writer: [] for writer in turns}
        while turns:
            rows = [writer.row for writer in turns]
            own = logits if rows == list(range(len(logits))) else logits[torch.tensor(rows, device=logits.device)]
            answers = [writer.answer for writer in turns]
            try:
                tokens = self._sampler(own[:, : self._sampler.vocab_size], [one.request.row for one in answers])
            except NoToken as error:
                for writer in (turns[place] for place in error.rows):
                    failed = Event(writer.asked.id, writer.index, 0, "", None, (), "error", str(error))
                    drawn[writer].append(failed)
                turns = [writer for place, writer in enumerate(turns) if place not in error.rows]
                continue
            self.tokens_drawn += len(turns)
            going_on = []
            for writer, token, chance in zip(turns, tokens.tolist(), chances_of(own, tokens, answers), strict=True):
                event = _event(writer, writer.answer.take(token, *chance))
                drawn[writer].append(event)
                if writer.guesses:
                    self.tokens_guessed += 1
                    right = writer.guesses.pop(0) == token
                    self.guesses_taken += right
                    if right and event.finish_reason is None:
                        writer.row += 1
                        going_on.append(writer)
            turns = going_on
        return drawn

    def _take(self, drawn: dict[_Writer, list[Event]], sequences: list[Sequence]) -> Iterator[Event]:
        """After the step: answers to one prompt part, those that are done leave, and what may be shown is."""
        for sequence in sequences:
            writers = self._writers[sequence]
            if not any(writer in drawn for writer in writers):
                continue  # its prompt is not all in
            own, *others = writers
            self._writers[sequence] = [own]
            for writer in others:
                if drawn[writer][-1].finish_reason is None:
                    child = self.scheduler.fork(sequence, drawn[writer][-1].token_id)
                    self._writers[child] = [writer]
                    writer.asked.sequences.append(child)
            if drawn[own][-1].finish_reason is not None:
                self.scheduler.finish(sequence)
                own.asked.sequences.remove(sequence)
                del self._writers[sequence]
            for writer in writers:
                for event in drawn[writer]:
                    yield from self._show(writer.asked, event)

    def _show(self, asked: _Asked, event: Event) -> Iterator[Event]:
        asked.left -= event.finish_reason is not None
        if not asked.left:
            del self._asked[asked.id]
        shown = [event]
        if asked.held is not None:
            asked.held[event.index].append(event)
            shown = [] if asked.left else list(_best(asked.held, asked.params))
        for one in shown:
            scores, asked.scores = asked.scores, None
            yield one if scores is None else replace(one, prompt_logprobs=tuple(scores))


def seed_of(params: SamplingParams, index: int) -> int:
    """The seed of one of the answers to a request."""
    return ((params.seed or 0) + index) % 2**63


def _event(writer: _Writer, token: TokenEvent) -> Event:
    return Event(
        writer.asked.id, writer.index, token.token_id, token.text, token.logprob, token.alternatives,
        token.finish_reason, token.finish_detail,
    )  # fmt: skip


def _best(answers: list[list[Event]], params: SamplingParams) -> Iterator[Event]:
    """The events of the `n` answers whose tokens are the most likely on average, the best one first."""

    def mean(answer: list[Event]) -> float:
        return sum(event.logprob or 0.0 for event in answer) / len(answer)

    for index, answer in enumerate(sorted(answers, key=mean, reverse=True)[: params.n]):
        for event in answer:
            plain = event if params.logprobs is not None else replace(event, logprob=None, alternatives=())
            yield replace(plain, index=index)
