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
from dataclasses import asdict, replace
from operator import eq
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pellucid.errors import InputError, did_you_mean
from pellucid.inference.beam_group import BeamGroup
from pellucid.inference.blocks import BlockPool
from pellucid.inference.deterministic import check_deterministic
from pellucid.inference.draft_model import MOST_GUESSES, DraftModel, check_same_vocabulary
from pellucid.inference.drafts import PromptLookups
from pellucid.inference.events import Asked, Event, Writer, best, failure, seed_of
from pellucid.inference.filters import log_probabilities
from pellucid.inference.generate import Answer, Chance, Request, chances_of, drawable, prepare
from pellucid.inference.params import SamplingParams
from pellucid.inference.room import blocks_that_fit, bytes_a_token, widened_bytes_a_token
from pellucid.inference.runner import Runner
from pellucid.inference.sampling import NoToken, Sampler
from pellucid.inference.scheduler import Scheduler
from pellucid.inference.sequence import Sequence
from pellucid.inference.speculation import Speculation
from pellucid.inference.step import Chunk
from pellucid.models.adapters import active_adapter, adapter_names
from pellucid.models.decoder import Decoder

if TYPE_CHECKING:
    from pellucid.tokenizer.tokenizer import Tokenizer

BLOCK_SIZE = 16  # tokens: small, so that little is wasted
GPU_BLOCK_SIZE = 64  # what a GPU's kernel reads at once
MAX_SEQUENCES = 64
MAX_TOKENS_PER_STEP = 512


class Engine:
    """A model that answers many requests at once. See `step`.

    num_blocks: of the cache; None: as many as all sequences can fill, or half of the free memory holds. block_size:
    tokens of a block; None: 16, and 64 on a GPU.
    max_sequences, max_tokens_per_step: see `Scheduler`. native, graphs: see `Runner`.
    draft: a smaller model of the same vocabulary, and its tokenizer: it guesses tokens ahead, which are then judged
    together, where that pays (see `drafts`). guesses: so many at most; without a draft model they come from the text
    before; 0: none, or with a draft model `MOST_GUESSES`.
    deterministic: log-probabilities are the same to the last bit, whatever else is under way, in whatever pieces
    prompts are read, with or without what the prefix cache holds. Raises `InputError` where that cannot be kept.
    int8_cache: keys and values are kept as bytes, in half of bfloat16's memory; log-probabilities move a little.
    drawn_logprobs: log-probabilities are those in the distribution that a token was drawn from, after temperature and
    filters, and not in the model's own, and events say `among` how many tokens: what learning from one's own answers
    needs. There are no alternatives then; those of a prompt's own tokens and of beams are the model's own all the same.
    """

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        *,
        num_blocks: int | None = None,
        block_size: int | None = None,
        max_sequences: int = MAX_SEQUENCES,
        max_tokens_per_step: int = MAX_TOKENS_PER_STEP,
        native: bool = True,
        graphs: bool = True,
        draft: tuple[Decoder, Tokenizer] | None = None,
        guesses: int = 0,
        deterministic: bool = False,
        int8_cache: bool = False,
        drawn_logprobs: bool = False,
    ):
        context, vocab_size = model.config.max_positions, drawable(model, tokenizer)
        block_size = block_size or (BLOCK_SIZE if model.device.type == "cpu" else GPU_BLOCK_SIZE)
        if deterministic:
            check_deterministic(model, native)
        if draft is not None:
            check_same_vocabulary(tokenizer, draft[1])
        self.size_of_cache = "asked for"  # where its number of blocks comes from
        if num_blocks is None:
            most = max_sequences * math.ceil(context / block_size)
            beside = 0 if draft is None else bytes_a_token(draft[0].config, draft[0].dtype)
            if int8_cache and model.device.type == "cuda":
                beside += widened_bytes_a_token(model.config, model.dtype)
            kept = torch.int8 if int8_cache else model.dtype
            num_blocks = blocks_that_fit(model.config, kept, model.device, block_size, most, beside)
            self.size_of_cache = (
                f"all that {max_sequences} sequences can fill" if num_blocks == most else "half of the free memory"
            )
        self.model, self.tokenizer = model, tokenizer
        self.adapters, self._adapter = adapter_names(model), active_adapter(model)
        self.vocab_size = model.config.vocab_size
        self.runner = Runner(model, num_blocks, block_size, native=native, graphs=graphs, int8_cache=int8_cache)
        self.scheduler = Scheduler(
            BlockPool(num_blocks, block_size), max_tokens_per_step=max_tokens_per_step, max_sequences=max_sequences,
            max_length=context,
        )  # fmt: skip
        self.max_length = self.scheduler.max_length
        self._drawn_logprobs = drawn_logprobs
        self.steps = self.tokens_read = self.tokens_drawn = 0
        self.speculation: Speculation | None = None
        if draft is not None:
            own = DraftModel(
                draft[0], vocab_size, num_blocks, block_size, native=native, graphs=graphs,
                max_tokens=max_tokens_per_step,
            )  # fmt: skip
            self.speculation = Speculation(own, guesses or MOST_GUESSES)
        elif guesses:
            self.speculation = Speculation(PromptLookups(), guesses)
        self._sampler = Sampler(vocab_size, model.device)
        self._numbers = itertools.count()
        self._asked: dict[int, Asked] = {}
        self._writers: dict[Sequence, list[Writer]] = {}  # until its first token a prompt has all of its answers
        self._beams: dict[Sequence, BeamGroup] = {}

    @property
    def busy(self) -> bool:
        """Whether any request is under way."""
        return bool(self._asked)

    @property
    def cache_bytes(self) -> int:
        """What the cache of keys and values takes, and a draft model's beside it."""
        drafter = None if self.speculation is None else self.speculation.drafter
        beside = drafter.runner.cache.num_bytes() if isinstance(drafter, DraftModel) else 0
        return self.runner.cache.num_bytes() + beside

    def stats(self) -> dict[str, float]:
        """The numbers of this moment, and what was counted since the start."""
        counted = {"steps": self.steps, "tokens_read": self.tokens_read, "tokens_drawn": self.tokens_drawn}
        guessed = {} if self.speculation is None else self.speculation.stats()
        return asdict(self.scheduler.stats()) | self.scheduler.use.stats() | counted | guessed

    def add(
        self, prompt: Several[int], params: SamplingParams, *, in_chat: bool = False, adapter: str | None = None
    ) -> int:
        """Queue a request for `params.n` answers to a prompt of token ids; its id, which its events have.

        in_chat: a chat template wrote the prompt: an answer is a text of its own, else it goes on with the prompt's.
        adapter: whose answers they are.

        Raises `InputError` for what cannot be answered, such as a prompt without room for an answer.
        """
        return self.queue(self.prepare(prompt, params, in_chat=in_chat, adapter=adapter))

    def prepare(
        self, prompt: Several[int], params: SamplingParams, *, in_chat: bool = False, adapter: str | None = None
    ) -> Asked:
        """The first half of `add`, which may run in any thread: a constraint takes its time until it is understood."""
        params, adapter = params.seeded(), self.adapter(adapter)
        if params.beam_width is not None:
            return self._prepare_beams(Sequence(prompt, adapter=adapter), params, in_chat)
        several = params.best_of if params.best_of is not None else params.n
        scored = params.prompt_logprobs is not None
        asked = Asked(Sequence(prompt, adapter=adapter, wanted_from=0 if scored else None), params, several)
        asked.scores = [] if scored else None
        asked.held = None if several == params.n else [[] for _ in range(several)]
        requests = self._requests(prompt, params, several, in_chat)
        asked.writers = [Writer(asked, index, Answer(0, one, self.tokenizer)) for index, one in enumerate(requests)]
        return asked

    def adapter(self, name: str | None) -> str | None:
        """The adapter of a request that names one, or none. Raises `InputError` where there is no such one."""
        if name is not None and name not in self.adapters:
            there = f"there are {', '.join(self.adapters)}" if self.adapters else "the model has none"
            raise InputError(f"there is no adapter {name!r}{did_you_mean(name, self.adapters)}: {there}")
        return self._adapter if name is None else name

    def queue(self, asked: Asked) -> int:
        """The second half of `add`."""
        self.scheduler.add(asked.prompt)
        asked.id = next(self._numbers)
        asked.sequences.append(asked.prompt)
        self._asked[asked.id] = asked
        if asked.beams is not None:
            self._beams[asked.prompt] = asked.beams
        else:
            self._writers[asked.prompt] = asked.writers
        return asked.id

    def weights_changed(self) -> None:
        """The model's weights have been written over in place: what was made from the old ones is made anew. Nothing
        may be under way."""
        assert not self.busy
        self.scheduler.blocks.forget()
        self.runner.weights_changed()

    def abort(self, id: int) -> None:  # noqa: A002
        """Nobody wants this request any more: what it holds is free at once. One that has ended stays as it is."""
        asked = self._asked.pop(id, None)
        for sequence in asked.sequences if asked else ():
            if sequence.state in ("waiting", "running"):  # not so after a step that failed half-way
                self.scheduler.finish(sequence)
            self._writers.pop(sequence, None)
            self._beams.pop(sequence, None)
        if self.speculation is not None:
            self.speculation.keep(self.scheduler.running)

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Compute once for all that is under way; the tokens that came of it, none while prompts are read."""
        started = time.perf_counter()
        self._guess()
        step, sequences = self.scheduler.schedule()
        if not step.chunks:
            return []
        logits = self.runner.run(step)  # (sum of wanted, V)
        self.steps += 1
        self.tokens_read += sum(len(chunk.tokens) for chunk in step.chunks)
        turns: list[Writer] = []
        ready: dict[Sequence, Tensor] = {}  # beams, and the logits that follow them
        row = 0
        for chunk, sequence in zip(step.chunks, sequences, strict=True):
            self._score(chunk, sequence, logits[row : row + chunk.wanted])
            row += chunk.wanted
            guesses = chunk.start + len(chunk.tokens) - len(sequence.token_ids)
            if guesses < 0:
                continue  # more of what is known is to come
            if sequence in self._beams:
                ready[sequence] = logits[row - 1]
            for writer in self._writers.get(sequence, ()):
                writer.row, writer.guesses = row - 1 - guesses, chunk.tokens[len(chunk.tokens) - guesses :]
                turns.append(writer)
        drawn = self._draw(logits, turns)
        groups = list(dict.fromkeys(self._beams[sequence] for sequence in ready))
        self.tokens_drawn += sum(group.advance(ready) for group in groups)
        accepted = [self._accepted(sequence, drawn, ready) for sequence in sequences]
        self.scheduler.commit(accepted)
        shown = list(self._take(drawn, sequences))
        for group in groups:
            shown += self._branch(group)
        torn = sorted((group for group in groups if group.torn), key=lambda group: group.asked.id)
        stuck = all(one is None and len(chunk.tokens) == 1 for one, chunk in zip(accepted, step.chunks, strict=True))
        for group in torn if stuck else torn[1:]:
            group.give_back(self.scheduler)
        if self.speculation is not None:
            self.speculation.keep(self.scheduler.running)
            if len(turns) == len(sequences):  # no step that reads prompts
                self.speculation.note(len(turns), sum(map(len, drawn.values())), time.perf_counter() - started)
        return shown

    def _guess(self) -> None:
        """Draft for the answers that are being written, if that pays."""
        if self.speculation is not None:
            writing = [
                one for one in self.scheduler.running if one.pending == 1 and len(self._writers.get(one, ())) == 1
            ]
            rows = {one: self._writers[one][0].answer.request.row for one in writing}
            self.speculation.guess(self.scheduler.running, rows)

    def _requests(self, prompt: Several[int], params: SamplingParams, several: int, in_chat: bool) -> Iterator[Request]:
        """The same prompt once for each answer, each with a seed of its own."""
        counted = params.logprobs if several == params.n else params.logprobs or 0
        for index in range(several):
            own = params.with_({"n": 1, "best_of": None, "seed": seed_of(params, index), "logprobs": counted})
            [one] = prepare(self.model, self.tokenizer, [prompt], own, in_chat=in_chat)
            yield self._within(one, self.max_length - len(prompt))

    def _within(self, request: Request, room: int) -> Request:
        """The request, which the cache leaves room for so many tokens."""
        return (
            request if request.max_tokens <= room else replace(request, max_tokens=max(1, room), max_detail="context")
        )

    def _prepare_beams(self, sequence: Sequence, params: SamplingParams, in_chat: bool) -> Asked:
        """A beam search, whose beams must all be in the cache at once."""
        assert params.beam_width is not None
        prompt = sequence.token_ids
        width, blocks = params.beam_width, self.scheduler.blocks
        shared = len(prompt) // blocks.block_size  # blocks that all of them hold; each has others, and one to grow into
        longest = (shared + (blocks.count - shared) // width - 1) * blocks.block_size
        if width > self.scheduler.max_sequences or longest <= len(prompt):
            raise InputError(
                f"beam_width = {width}: the engine runs {self.scheduler.max_sequences} at once, and its cache of "
                f"{blocks.count * blocks.block_size} tokens has room for few after a prompt of {len(prompt)}: "
                "ask for fewer beams"
            )
        asked = Asked(sequence, params, params.n)
        [request] = prepare(self.model, self.tokenizer, [prompt], params.with_({"n": 1}), in_chat=in_chat)
        request = self._within(request, min(longest, self.max_length) - len(prompt))
        asked.beams = BeamGroup(asked, request, self._sampler.vocab_size)
        return asked

    def _accepted(
        self, sequence: Sequence, drawn: dict[Writer, list[Event]], ready: dict[Sequence, Tensor]
    ) -> list[int] | None:
        """What `Scheduler.commit` is to be told of a sequence of the step."""
        if sequence in self._beams:
            return self._beams[sequence].accepted(sequence) if sequence in ready else []
        return [event.token_id for event in drawn.get(self._writers[sequence][0], ())]

    def _branch(self, group: BeamGroup) -> Iterator[Event]:
        """After the step: the beams go on, or the search is over, and its answers are shown."""
        asked = group.asked
        for sequence in asked.sequences:
            del self._beams[sequence]
        group.branch(self.scheduler)
        self._beams |= dict.fromkeys(asked.sequences, group)
        if not asked.sequences:
            for event in group.events(self.tokenizer):
                yield from self._show(asked, event)

    def _score(self, chunk: Chunk, sequence: Sequence, logits: Tensor) -> None:
        """The log-probabilities of a prompt's own tokens, where they are asked for. logits: (wanted, V)."""
        if sequence not in self._writers:
            return
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

    def _draw(self, logits: Tensor, turns: list[Writer]) -> dict[Writer, list[Event]]:
        """The next token of each; more for those whose guesses are drawn. An error for those that have none to draw."""
        drawn: dict[Writer, list[Event]] = {writer: [] for writer in turns}
        while turns:
            rows = [writer.row for writer in turns]
            own = logits if rows == list(range(len(logits))) else logits[torch.tensor(rows, device=logits.device)]
            answers = [writer.answer for writer in turns]
            states = [answer.request.row for answer in answers]
            try:
                found = self._sampler.draw(own[:, : self._sampler.vocab_size], states)
            except NoToken as error:
                for writer in (turns[place] for place in error.rows):
                    drawn[writer].append(failure(writer.asked, writer.index, str(error)))
                turns = [writer for place, writer in enumerate(turns) if place not in error.rows]
                continue
            self.tokens_drawn += len(turns)
            going_on = []
            chances: list[Chance]
            among: list[int | None]
            if self._drawn_logprobs:
                chances = [(chance, ()) for chance in found.chances.log().tolist()]
                among = list(found.among.tolist())
            else:
                chances, among = chances_of(own, found.tokens, answers), [None] * len(turns)
            for writer, token, chance, of in zip(turns, found.tokens.tolist(), chances, among, strict=True):
                event = writer.event(writer.answer.take(token, *chance), of)
                drawn[writer].append(event)
                place = len(drawn[writer]) - 1
                if writer.guesses[place : place + 1] == [token] and event.finish_reason is None:
                    writer.row += 1
                    going_on.append(writer)
            turns = going_on
        if self.speculation is not None:
            for writer in (one for one in drawn if one.guesses):
                taken = sum(map(eq, writer.guesses, [event.token_id for event in drawn[writer]]))
                self.speculation.judged(len(writer.guesses), taken)
        return drawn

    def _take(self, drawn: dict[Writer, list[Event]], sequences: list[Sequence]) -> Iterator[Event]:
        """After the step: answers to one prompt part, those that are done leave, and what may be shown is."""
        for sequence in sequences:
            writers = self._writers.get(sequence, [])
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

    def _show(self, asked: Asked, event: Event) -> Iterator[Event]:
        asked.left -= event.finish_reason is not None
        if not asked.left:
            del self._asked[asked.id]
        shown = [event]
        if asked.held is not None:
            asked.held[event.index].append(event)
            shown = [] if asked.left else list(best(asked.held, asked.params))
        for one in shown:
            scores, asked.scores = asked.scores, None
            yield one if scores is None else replace(one, prompt_logprobs=tuple(scores))
