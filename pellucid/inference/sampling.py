"""From logits to the next token: what a request may ask of sampling, the filters, and the sampler of a batch.

The filters come in the order of the field: penalties, temperature, top-k, top-p, min-p. Each is a pure function of the
logits and of one number a row. B rows, V entries of the vocabulary.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from torch import Tensor

from pellucid.errors import PellucidError, from_validation

NUCLEUS_GUESS = (
    1024  # a nucleus is mostly smaller than this, and the largest 1024 are found far sooner than all are sorted
)


class SamplingParams(BaseModel):
    """How one request wants its tokens drawn. Raises `InputError` that names the field, its value and what is allowed.

    temperature: 0 takes the most likely token (arg-max); 1 is the model's own distribution.
    top_k: draw among the k most likely tokens; 0 is off.
    top_p: draw among the fewest most likely tokens whose probabilities add up to p (nucleus); 1 is off.
    min_p: draw among tokens at least this fraction as likely as the most likely one; 0 is off.
    repetition_penalty: tokens of the prompt and the answer so far get less likely; 1 is off.
    presence_penalty, frequency_penalty: taken off the logit of a token that is in the answer so far, once or for each
        time that it is; 0 is off.
    max_tokens: the most tokens an answer may have; None: until the context is full.
    stop: the answer ends before the first of these strings; stop_token_ids: after the first of these tokens.
    ignore_eos: the model's own end-of-text tokens do not end the answer.
    seed: of the request's own generator, so that its draws do not depend on its neighbours; None: a fresh one, which
        the completion reports.
    logprobs: also give the log-probability of each token and of this many alternatives. They are of the raw
        distribution of the model, before penalties, temperature and filters. None: none at all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    temperature: float = Field(1.0, ge=0)
    top_k: int = Field(0, ge=0, lt=2**31)
    top_p: float = Field(1.0, gt=0, le=1)
    min_p: float = Field(0.0, ge=0, le=1)
    repetition_penalty: float = Field(1.0, gt=0, le=1e6)
    presence_penalty: float = Field(0.0, ge=-1e6, le=1e6)
    frequency_penalty: float = Field(0.0, ge=-1e6, le=1e6)
    max_tokens: int | None = Field(None, ge=1)
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    seed: int | None = Field(None, ge=0, lt=2**63)
    logprobs: int | None = Field(None, ge=0)

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise from_validation(error, "sampling", type(self).model_fields) from None

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop_or_many(cls, stop: object) -> object:
        return (stop,) if isinstance(stop, str) else stop

    @field_validator("stop")
    @classmethod
    def _no_empty_stop(cls, stop: tuple[str, ...]) -> tuple[str, ...]:
        if "" in stop:
            raise ValueError("an empty stop string would end every answer before its first token")
        return stop

    def with_(self, changes: Mapping[str, Any]) -> SamplingParams:
        """These parameters with some of them changed, validated again."""
        return SamplingParams(**{**self.model_dump(), **changes})

    def seeded(self) -> SamplingParams:
        """These parameters with a seed: their own, or else a fresh one."""
        return self if self.seed is not None else self.with_({"seed": secrets.randbits(63)})


# CTRL's penalised sampling (Keskar et al. 2019, section 4.1), in the form that every peer uses, which also
# pushes negative logits down:  x_i <- x_i / r if x_i > 0 else x_i * r,  for every token i seen
def penalise_repetition(logits: Tensor, seen: Tensor, penalty: Tensor) -> Tensor:
    """`logits` (B, V) with the tokens of `seen` (B, V), boolean, made less likely by `penalty` (B,)."""
    by = penalty[:, None]
    return torch.where(seen, torch.where(logits > 0, logits / by, logits * by), logits)


# x_i <- x_i - presence * [n_i > 0] - frequency * n_i,  n_i: times that token i is in the answer so far
# (OpenAI's API reference)
def penalise_presence(logits: Tensor, counts: Tensor, presence: Tensor, frequency: Tensor) -> Tensor:
    """`logits` (B, V) less `presence` (B,) once, and `frequency` (B,) for each of the `counts` (B, V)."""
    return logits - presence[:, None] * (counts > 0) - frequency[:, None] * counts


# x <- (x - max x) / t: the shift changes no probability, and keeps the smallest t from making infinity less infinity
def apply_temperature(logits: Tensor, temperature: Tensor) -> Tensor:
    """`logits` (B, V), the largest of each row moved to 0, over `temperature` (B,), above 0."""
    logits = logits.clamp(max=torch.finfo(logits.dtype).max)
    return (logits - logits.amax(-1, keepdim=True)) / temperature[:, None]


# Hierarchical neural story generation (Fan et al. 2018, section 5.1): keep the k largest
def keep_top_k(logits: Tensor, k: Tensor) -> Tensor:
    """`logits` (B, V), -inf for all but the `k` (B,) largest of each row; equals of the smallest stay; 0 keeps all."""
    size = logits.shape[-1]
    k = torch.where(k == 0, size, k).clamp(max=size)
    limited = k[k < size]
    if not len(limited):
        return logits
    largest = logits.topk(int(limited.max())).values  # (B, largest k)
    smallest_kept = largest.gather(-1, k.clamp(max=largest.shape[-1])[:, None] - 1)  # (B, 1)
    return logits.masked_fill((logits < smallest_kept) & (k < size)[:, None], -torch.inf)


# The nucleus (Holtzman et al. 2020, section 3.1): the smallest set of most likely tokens whose P add up to at least p.
# Sorted from the most likely down, token i is in it when the tokens before it add up to less than p.
def keep_top_p(logits: Tensor, p: Tensor) -> Tensor:
    """`logits` (B, V), -inf outside the nucleus of mass `p` (B,); the first token and equals of the last one stay."""
    chances = logits.softmax(-1)  # (B, V)
    sorted_chances = chances.topk(min(NUCLEUS_GUESS, logits.shape[-1])).values
    before = sorted_chances.cumsum(-1, dtype=torch.float64) - sorted_chances
    limited = p < 1
    if ((before[:, -1] < p) & limited).any():  # some nucleus may reach past the guess
        sorted_chances = chances.sort(-1, descending=True).values
        before = sorted_chances.cumsum(-1, dtype=torch.float64) - sorted_chances
    size = (before < p[:, None].double()).sum(-1, keepdim=True).clamp(min=1)  # (B, 1)
    smallest_kept = sorted_chances.gather(-1, size - 1)
    return logits.masked_fill((chances < smallest_kept) & limited[:, None], -torch.inf)


# Min-p (Nguyen et al. 2024, section 3): keep P(i) >= m * max P, on logits  x_i >= max x + ln m
def keep_min_p(logits: Tensor, minimum: Tensor) -> Tensor:
    """`logits` (B, V), -inf where a token is less than `minimum` (B,) times as likely as the row's most likely one."""
    return logits.masked_fill(logits < logits.amax(-1, keepdim=True) + minimum.log()[:, None], -torch.inf)


# The inverse of the cumulative distribution at u: the first token i with  P(0) + ... + P(i) > u
def draw(logits: Tensor, uniforms: Tensor) -> Tensor:
    """One token of each row of `logits` (B, V), chosen by `uniforms` (B,), float64 in [0, 1). Returns (B,)."""
    cumulative = logits.softmax(-1).cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    point = torch.minimum(uniforms[:, None] * total, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(cumulative, point, right=True)[:, 0]


class Sampler:
    """The next token of each row of a batch. Rows have their own parameters, random generator and history.

    params: one for each of the B rows. prompts: their token ids. vocab_size: V.
    """

    def __init__(
        self,
        params: Sequence[SamplingParams],
        prompts: Sequence[Sequence[int]],
        vocab_size: int,
        device: torch.device | str = "cpu",
    ) -> None:
        def column(name: str, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.tensor([getattr(one, name) for one in params], dtype=dtype, device=device)

        self._generators = [torch.Generator().manual_seed(one.seeded().seed or 0) for one in params]
        self._columns = {name: column(name) for name in ("temperature", "top_p", "min_p")}
        self._columns |= {
            name: column(name) for name in ("repetition_penalty", "presence_penalty", "frequency_penalty")
        }
        self._columns["top_k"] = column("top_k", torch.int64)
        self._device = torch.device(device)
        self._counts: Tensor | None = None  # (B, V), times that a token is in the answer
        self._seen: Tensor | None = None  # (B, V), is it in the prompt or the answer?
        if any(one.presence_penalty or one.frequency_penalty for one in params):
            self._counts = torch.zeros(len(params), vocab_size, dtype=torch.int32, device=device)
        if any(one.repetition_penalty != 1 for one in params):
            self._seen = torch.zeros(len(params), vocab_size, dtype=torch.bool, device=device)
            for row, prompt in enumerate(prompts):
                self._seen[row, torch.tensor(prompt, dtype=torch.int64, device=device)] = True
        self._plan()

    def _plan(self) -> None:
        """What the rows at hand need, found out once and not at each token."""
        columns = self._columns
        self._greedy = columns["temperature"] < torch.finfo(torch.float32).tiny  # 0, or what float32 has no number for
        self._sampled = [row for row, greedy in enumerate(self._greedy.tolist()) if not greedy]
        self._heat = torch.where(self._greedy, 1.0, columns["temperature"])
        self._filters = [
            (keep, columns[name])
            for keep, name, off in ((keep_top_k, "top_k", 0), (keep_top_p, "top_p", 1), (keep_min_p, "min_p", 0))
            if bool((columns[name][self._sampled] != off).any())
        ]

    def keep(self, rows: Sequence[int]) -> None:
        """The other rows leave the batch."""
        index = torch.tensor(rows, dtype=torch.int64, device=self._device)
        self._columns = {name: column[index] for name, column in self._columns.items()}
        self._generators = [self._generators[row] for row in rows]
        self._counts = None if self._counts is None else self._counts[index]
        self._seen = None if self._seen is None else self._seen[index]
        self._plan()

    def __call__(self, logits: Tensor) -> Tensor:
        """The tokens (B,) that follow `logits` (B, V); they go into the rows' histories.

        Raises `PellucidError` when a row has a NaN, or nothing above -inf.
        """
        logits = logits.float()
        logits = self._penalised(logits)
        tokens = logits.argmax(-1)  # a NaN counts as the largest
        if not (logits.gather(-1, tokens[:, None]) > -torch.inf).all():
            raise PellucidError("the model's logits are not numbers: try float32, and if that fails, check the weights")
        if self._sampled:
            tokens = torch.where(self._greedy, tokens, draw(self._filtered(logits), self._uniforms(len(tokens))))
        if self._counts is not None:
            self._counts.scatter_add_(-1, tokens[:, None], torch.ones_like(tokens[:, None], dtype=torch.int32))
        if self._seen is not None:
            self._seen.scatter_(-1, tokens[:, None], True)
        return tokens

    def _penalised(self, logits: Tensor) -> Tensor:
        columns = self._columns
        if self._seen is not None:
            logits = penalise_repetition(logits, self._seen, columns["repetition_penalty"])
        if self._counts is not None:
            logits = penalise_presence(logits, self._counts, columns["presence_penalty"], columns["frequency_penalty"])
        return logits

    def _filtered(self, logits: Tensor) -> Tensor:
        logits = apply_temperature(logits, self._heat)
        for keep, value in self._filters:
            logits = keep(logits, value)
        return logits

    def _uniforms(self, rows: int) -> Tensor:
        """One number of each sampled row's own generator: a row's draws are its own, whoever stands beside it."""
        uniforms = torch.zeros(rows, dtype=torch.float64)
        for row in self._sampled:
            uniforms[row] = torch.rand((), dtype=torch.float64, generator=self._generators[row])
        return uniforms.to(self._device)


def log_probabilities(logits: Tensor, tokens: Tensor, alternatives: int) -> tuple[Tensor, Tensor, Tensor]:
    """ln P of the raw distribution of `logits` (B, V): of `tokens` (B,), and of the most likely `alternatives`.

    Returns (B,), and (B, alternatives) of values and of token ids, from the most likely down.
    """
    logits = logits.float()
    total = logits.logsumexp(-1, keepdim=True)  # (B, 1)
    best = logits.topk(alternatives)
    return (logits.gather(-1, tokens[:, None]) - total)[:, 0], best.values - total, best.indices
