"""Generation in its simplest form: the reference that faster engines are tested against.

A batch of unequal prompts, padded on the left, goes through the model once; then every step feeds each row's last token
and draws its next one. Rows that are done leave the batch. B rows in the batch, T tokens of the longest prompt.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from pellucid.errors import InputError, PellucidError
from pellucid.inference.filters import log_probabilities
from pellucid.inference.params import SamplingParams
from pellucid.inference.rows import Row, new_row
from pellucid.inference.sampling import Sampler
from pellucid.inference.stopping import StopText
from pellucid.layers.batch import PADDING, Batch
from pellucid.layers.cache import KVCache
from pellucid.models.decoder import Decoder

if TYPE_CHECKING:
    from pellucid.inference.events import Event
    from pellucid.tokenizer.tokenizer import Tokenizer

PREFILL_CHUNK = 2048  # tokens of a prompt in one forward: bounds the memory of activations and masks

FinishReason = Literal["stop", "length"]
Chance = tuple[float | None, tuple[tuple[int, float], ...]]  # `logprob` and `alternatives` of a `TokenEvent`


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One token of one answer.

    row: the prompt's number. text: what became certain with this token: "" while the text may still be half a character
    or the beginning of a stop string; the pieces of a row joined are the text of its answer.
    logprob: ln P of the token in the model's raw distribution, and `alternatives` the (token, ln P) of the most likely
    ones; None and empty when they were not asked for.
    finish_reason: "stop" or "length" with the row's last token, else None.
    finish_detail: the stop string, the id of the stop token, or "constraint" when that is met and nothing may follow;
    "max_tokens" or "context" for "length".
    """

    row: int
    token_id: int
    text: str
    logprob: float | None
    alternatives: tuple[tuple[int, float], ...]
    finish_reason: FinishReason | None
    finish_detail: str | int | None


@dataclass(slots=True)
class Completion:
    """The answer to one prompt.

    text has neither the stop string nor the stop token; token_ids has all that were drawn, the stop token too.
    logprobs, alternatives: one entry for each of token_ids, as in `TokenEvent`; None unless asked for.
    seed: the one that drew it. first_token_seconds, seconds: from the start of the batch to the first and last token.
    """

    prompt_tokens: int
    seed: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] | None = None
    alternatives: list[tuple[tuple[int, float], ...]] | None = None
    finish_reason: FinishReason = "length"
    finish_detail: str | int = "max_tokens"
    first_token_seconds: float = 0.0
    seconds: float = 0.0

    def take(self, event: TokenEvent | Event, seconds: float) -> None:
        """Its next token, `seconds` from the start. Raises `PellucidError` where none could be drawn."""
        if event.finish_reason == "error":
            raise PellucidError(str(event.finish_detail))
        self.seconds = seconds
        if not self.token_ids:
            self.first_token_seconds = seconds
        self.token_ids.append(event.token_id)
        self.text += event.text
        if self.logprobs is not None and self.alternatives is not None and event.logprob is not None:
            self.logprobs.append(event.logprob)
            self.alternatives.append(event.alternatives)
        if event.finish_reason is not None and event.finish_detail is not None:
            self.finish_reason, self.finish_detail = event.finish_reason, event.finish_detail


def new_completion(prompt_tokens: int, params: SamplingParams, seed: int) -> Completion:
    """An answer that has no token yet."""
    scored = params.logprobs is not None
    return Completion(prompt_tokens, seed, logprobs=[] if scored else None, alternatives=[] if scored else None)


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt that has been found sound: its token ids, when its answer must end, and how it is drawn."""

    prompt: list[int]
    params: SamplingParams  # with a seed
    stop_ids: frozenset[int]
    max_tokens: int
    max_detail: Literal["max_tokens", "context"]  # which of the two gave max_tokens
    row: Row  # the state of one answer: a request is run once
    in_chat: bool = False  # a chat template wrote the prompt: the answer is a text of its own, else it goes on with it


def generate(
    model: Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[str | Sequence[int]],
    params: SamplingParams | Sequence[SamplingParams],
) -> list[Completion]:
    """Answer each prompt (text, or token ids taken as they are); `params` for all of them or one for each.

    Text gets the BOS token that its tokenizer adds, and no text makes a special token.
    An answer ends at the latest where the context is full ("length", "context"). A row's tokens do not depend on the
    other rows. Raises `InputError` for a prompt that is empty, or fills the context, with both numbers.
    """
    requests = _single(prepare(model, tokenizer, prompts, params))
    started = time.perf_counter()
    completions = [new_completion(len(one.prompt), one.params, one.params.seed or 0) for one in requests]
    for event in run(model, tokenizer, requests):
        completions[event.row].take(event, time.perf_counter() - started)
    return completions


def stream(
    model: Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[str | Sequence[int]],
    params: SamplingParams | Sequence[SamplingParams],
) -> Iterator[TokenEvent]:
    """What `generate` does, token by token. Errors in what is asked are raised at the call, before the first token."""
    return run(model, tokenizer, _single(prepare(model, tokenizer, prompts, params)))


def _single(requests: list[Request]) -> list[Request]:
    """The requests, if each wants what this generator gives: one answer, and nothing about its prompt."""
    for one in requests:
        for name in ("n", "best_of", "beam_width", "prompt_logprobs"):
            if getattr(one.params, name) not in (None, SamplingParams.model_fields[name].default):
                raise InputError(
                    f"{name} = {getattr(one.params, name)}: the reference generator has no {name}, ask the engine (LLM)"
                )
    return requests


def prepare(
    model: Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[str | Sequence[int]],
    params: SamplingParams | Sequence[SamplingParams],
    *,
    in_chat: bool = False,
) -> list[Request]:
    """What the sampler and the loop need of every prompt. in_chat: see `Request`.

    Raises `InputError` for what cannot be answered.
    """
    if isinstance(prompts, str):
        raise InputError("prompts must be a list: for one prompt, give [prompt]")
    each = one_each(params, len(prompts))
    ends = frozenset(tokenizer.stop_ids) | end_ids(model.generation_config)
    requests = []
    for number, (prompt, one) in enumerate(zip(prompts, each, strict=True), 1):
        ids = prompt_ids(tokenizer, prompt) if isinstance(prompt, str) else list(prompt)
        room = check_prompt(ids, model, f"prompt {number}" if len(prompts) > 1 else "the prompt")
        wanted = room if one.max_tokens is None else one.max_tokens
        stop_ids = frozenset(one.stop_token_ids) | (frozenset() if one.ignore_eos else ends)
        one = one.seeded()
        row = new_row(one, ids, drawable(model, tokenizer), stop_ids=stop_ids, end_ids=ends, tokenizer=tokenizer)
        detail: Literal["max_tokens", "context"] = "context" if wanted >= room else "max_tokens"
        requests.append(Request(ids, one, stop_ids, min(wanted, room), detail, row, in_chat))
    return requests


def one_each(params: SamplingParams | Sequence[SamplingParams], prompts: int) -> list[SamplingParams]:
    """The parameters of each prompt. Raises `InputError` where there are neither one for all nor as many."""
    each = [params] * prompts if isinstance(params, SamplingParams) else list(params)
    if len(each) != prompts:
        raise InputError(f"there are {prompts} prompts and {len(each)} sampling parameters: give one each, or one")
    return each


def drawable(model: Decoder, tokenizer: Tokenizer) -> int:
    """How many tokens can be drawn: a model's vocabulary may be padded past what its tokenizer can write."""
    return min(model.config.vocab_size, tokenizer.vocab_size)


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The ids of a text without a chat template, with the one BOS that the tokenizer adds; an empty text is a BOS."""
    ids = tokenizer.encode(prompt, add_bos=tokenizer.adds_bos)
    return ids if ids or tokenizer.bos_id is None else [tokenizer.bos_id]


def check_prompt(ids: Sequence[int], model: Decoder, name: str) -> int:
    """How many tokens the context has left after the prompt. A prompt is never cut: one without room is refused."""
    context, vocab_size = model.config.max_positions, model.config.vocab_size
    if not ids:
        raise InputError(f"{name} is empty: give at least one token")
    if not 0 <= min(ids) <= max(ids) < vocab_size:
        wrong = min(ids) if min(ids) < 0 else max(ids)
        raise InputError(f"{name} has the token id {wrong}, and the model's vocabulary ends at {vocab_size - 1}")
    if len(ids) >= context:
        raise InputError(
            f"{name} has {len(ids)} tokens and the context holds {context}, the answer included: make it shorter"
        )
    return context - len(ids)


def end_ids(generation_config: Mapping[str, Any]) -> frozenset[int]:
    """The tokens that end an answer by the model's generation_config.json: one, a list, or none."""
    ids = generation_config.get("eos_token_id")
    if ids is None:
        return frozenset()
    return frozenset(ids if isinstance(ids, list) else [ids])


@torch.inference_mode()
def run(model: Decoder, tokenizer: Tokenizer, requests: Sequence[Request]) -> Iterator[TokenEvent]:
    """The engine: prefill once, then a token a step for every row that is not done."""
    if not requests:
        return
    device = model.device
    vocab_size = drawable(model, tokenizer)
    sampler = Sampler(vocab_size, device)
    longest = max(len(one.prompt) for one in requests)
    cache = model.new_cache(len(requests), longest + max(one.max_tokens for one in requests) - 1)
    hidden, positions = _prefill(model, requests, cache, device)
    answers = [Answer(row, one, tokenizer) for row, one in enumerate(requests)]
    while True:
        logits = model.logits(hidden[:, -1])  # (B, V): the head reads the last position only
        tokens = sampler(logits[:, :vocab_size], [answer.request.row for answer in answers])  # (B,)
        ids = tokens.tolist()
        chances = chances_of(logits, tokens, answers)
        for answer, token, (logprob, alternatives) in zip(answers, ids, chances, strict=True):
            yield answer.take(token, logprob, alternatives)
        alive = [place for place, answer in enumerate(answers) if not answer.done]
        if not alive:
            return
        if len(alive) < len(answers):
            kept = torch.tensor(alive, device=device)
            cache.select(kept)
            tokens, positions = tokens[kept], positions[kept]
            answers = [answers[place] for place in alive]
        positions = positions + 1
        hidden = model.hidden(tokens[:, None], Batch(positions, None, cache))  # (B, 1, E)


def _prefill(
    model: Decoder, requests: Sequence[Request], cache: KVCache, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Take the prompts in. Returns hidden states (B, t, E) of the last t tokens, and the last positions (B, 1)."""
    lengths = torch.tensor([len(one.prompt) for one in requests])
    longest = int(lengths.max())
    tokens = torch.zeros(len(requests), longest, dtype=torch.int64)  # (B, T), padded on the left
    for row, one in enumerate(requests):
        tokens[row, longest - len(one.prompt) :] = torch.tensor(one.prompt)
    positions = torch.arange(longest) - (longest - lengths)[:, None]  # (B, T), negative in the padding
    # One document a row needs no document numbers, and so no mask but causality.
    documents = None if int(lengths.min()) == longest else torch.where(positions < 0, PADDING, 0).to(device)
    tokens, positions = tokens.to(device), positions.clamp(min=0).to(device)
    for start in range(0, longest, PREFILL_CHUNK):
        part = slice(start, start + PREFILL_CHUNK)
        borders = None if documents is None else documents[:, part]
        hidden = model.hidden(tokens[:, part], Batch(positions[:, part], borders, cache))
    return hidden, positions[:, -1:]


def chances_of(logits: Tensor, tokens: Tensor, answers: Sequence[Answer]) -> list[Chance]:
    """For each row the token's log-probability and the alternatives that it asked for."""
    asked = [answer.request.params.logprobs for answer in answers]
    most = max((count for count in asked if count is not None), default=None)
    if most is None:
        return [(None, ())] * len(answers)
    chosen, values, ids = (part.tolist() for part in log_probabilities(logits, tokens, most))
    return [
        (None, ()) if count is None else (chosen[row], tuple(zip(ids[row][:count], values[row][:count], strict=True)))
        for row, count in enumerate(asked)
    ]


class Answer:
    """The answer to one request while it grows."""

    def __init__(self, row: int, request: Request, tokenizer: Tokenizer) -> None:
        self.row = row
        self.request = request
        self.done = False
        self._length = 0
        self._decoder = tokenizer.stream_decoder(begun=not (request.in_chat or request.prompt == [tokenizer.bos_id]))
        self._text = StopText(request.params.stop)

    def take(self, token: int, logprob: float | None, alternatives: tuple[tuple[int, float], ...]) -> TokenEvent:
        """The next token, and whether it is the last."""
        self._length += 1
        reason: FinishReason | None = None
        detail: str | int | None = None
        if token in self.request.stop_ids:
            text, reason, detail = "", "stop", token
        else:
            text = self._decoder.push(token)
            if self._length > self.request.params.min_tokens:
                text = self._text.push(text)
            if self._text.found is None and self.request.row.finished:
                reason, detail = "stop", "constraint"
            elif self._text.found is None and self._length >= self.request.max_tokens:
                reason, detail = "length", self.request.max_detail
        if reason is not None:  # nothing follows: what was held back is text
            text += self._text.push(self._decoder.finish()) + self._text.flush()
        if self._text.found is not None:
            reason, detail = "stop", self._text.found
        self.done = reason is not None
        return TokenEvent(self.row, token, text, logprob, alternatives, reason, detail)
