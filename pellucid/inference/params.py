"""What one request asks of the sampler: every parameter, and what it may be."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, ValidationError, field_validator, model_validator

from pellucid.errors import InputError, from_validation

MAX_STOPS = 1024  # stop strings of one request, and stop tokens
MAX_BAD_WORDS = 256  # each of them costs a look at the whole vocabulary
MAX_CHOICES = 4096
MAX_BIASES = 1024
MAX_LETTERS = 32_768  # of all stop strings, of all bad words, of all choices
MAX_ANSWERS = 128  # of one prompt, as OpenAI's API has it

# What would change the distribution in which beam search looks, or is known only of one answer
NOT_FOR_BEAMS = (
    "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "bad_words", "constraint",
    "min_tokens", "stop", "best_of", "prompt_logprobs",
)  # fmt: skip

Bias = Annotated[float, Field(ge=-100, le=100)]


class Constraint(BaseModel):
    """What an answer must look like: exactly one of these.

    json_schema: a value that meets this JSON schema; json_object: any JSON object.
    regex: a text that this regular expression matches from its first letter to its last (the syntax of Rust's regex).
    choice: one of these texts.
    grammar: a text of this grammar, written in Lark's notation, from its rule `start`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    json_schema: dict[str, Any] | StrictBool | None = None
    json_object: StrictBool = False
    regex: str | None = None
    choice: tuple[str, ...] | None = None
    grammar: str | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> Constraint:
        if len(given := self.given()) != 1:
            named = " and ".join(given) if given else "nothing"
            raise ValueError(f"a constraint is one of {', '.join(type(self).model_fields)}, and this one has {named}")
        if self.choice is not None and (not self.choice or "" in self.choice):
            raise ValueError("a choice needs at least one text, and none of them empty")
        _few("choices", self.choice or (), MAX_CHOICES)
        return self

    def given(self) -> list[str]:
        """The names of the fields that have been set."""
        return [name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default]


class SamplingParams(BaseModel):
    """How one request wants its tokens drawn. Raises `InputError` that names the field, its value and what is allowed.

    temperature: 0 takes the most likely token (arg-max); 1 is the model's own distribution.
    top_k: draw among the k most likely tokens; 0 is off.
    top_p: draw among the fewest most likely tokens whose probabilities add up to p (nucleus); 1 is off.
    min_p: draw among tokens at least this fraction as likely as the most likely one; 0 is off.
    typical_p: draw among the fewest tokens of most ordinary surprise whose probabilities add up to p; 1 is off.
    repetition_penalty: tokens of the prompt and the answer so far get less likely; 1 is off.
    presence_penalty, frequency_penalty: taken off the logit of a token that is in the answer so far, once or for each
        time that it is; 0 is off.
    logit_bias: token id -> what is added to its logit, from -100 (hardly ever) to 100 (hardly another).
    bad_words: texts that no answer has, in whatever tokens they might be written.
    constraint: what the answer must look like: see `Constraint`.
    max_tokens: the most tokens an answer may have; None: until the context is full; 0: none, with prompt_logprobs.
    min_tokens: no stop token is drawn before the answer has so many tokens, and no stop string is looked for in them.
    stop: the answer ends before the first of these strings; stop_token_ids: after the first of these tokens.
    ignore_eos: the model's own end-of-text tokens do not end the answer.
    seed: of the request's own generator, so that its draws do not depend on its neighbours; None: a fresh one, which
        the completion reports.
    n: answers to each prompt; best_of: draw so many, and give the n whose tokens are the most likely on average.
    beam_width: look for the likeliest answers as a whole among so many beginnings at a time (beam search), and give the
        n best. Nothing is drawn, so that temperature, the filters and the seed play no part.
    length_penalty: beams are in order of ln P / length^a; 0 favours short answers, 1 takes the mean of a token's ln P.
    early_stopping: of beam search: True ends it with the first `beam_width` answers that are whole; False when the best
        beginning scores no better than the worst of them; "never" when none could, however long it gets.
    logprobs: also give the log-probability of each token and of this many alternatives. They are of the raw
        distribution of the model, before penalties, temperature and filters. None: none at all.
    prompt_logprobs: the same for the tokens of the prompt, from the second on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    temperature: float = Field(1.0, ge=0)
    top_k: int = Field(0, ge=0, lt=2**31)
    top_p: float = Field(1.0, gt=0, le=1)
    min_p: float = Field(0.0, ge=0, le=1)
    typical_p: float = Field(1.0, gt=0, le=1)
    repetition_penalty: float = Field(1.0, gt=0, le=1e6)
    presence_penalty: float = Field(0.0, ge=-1e6, le=1e6)
    frequency_penalty: float = Field(0.0, ge=-1e6, le=1e6)
    logit_bias: dict[Annotated[int, Field(ge=0)], Bias] = Field(default_factory=dict)
    bad_words: tuple[str, ...] = ()
    constraint: Constraint | None = None
    max_tokens: int | None = Field(None, ge=0)
    min_tokens: int = Field(0, ge=0)
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    seed: int | None = Field(None, ge=0, lt=2**63)
    n: int = Field(1, ge=1, le=MAX_ANSWERS)
    best_of: int | None = Field(None, ge=1, le=MAX_ANSWERS)
    beam_width: int | None = Field(None, ge=1, le=MAX_ANSWERS)
    length_penalty: float = Field(1.0, ge=-10, le=10)
    early_stopping: StrictBool | Literal["never"] = False
    logprobs: int | None = Field(None, ge=0)
    prompt_logprobs: int | None = Field(None, ge=0)

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise from_validation(error, "sampling", type(self).model_fields) from None

    @field_validator("stop", "bad_words", mode="before")
    @classmethod
    def _one_or_many(cls, given: object) -> object:
        return (given,) if isinstance(given, str) else given

    @field_validator("stop")
    @classmethod
    def _stops(cls, stop: tuple[str, ...]) -> tuple[str, ...]:
        if "" in stop:
            raise ValueError("an empty stop string would end every answer before its first token")
        return _few("stop strings", stop, MAX_STOPS)

    @field_validator("stop_token_ids")
    @classmethod
    def _stop_tokens(cls, ids: tuple[int, ...]) -> tuple[int, ...]:
        if len(ids) > MAX_STOPS:
            raise ValueError(f"there are {len(ids)} stop tokens: at most {MAX_STOPS} are taken")
        return ids

    @field_validator("logit_bias")
    @classmethod
    def _biases(cls, biases: dict[int, float]) -> dict[int, float]:
        if len(biases) > MAX_BIASES:
            raise ValueError(f"there are {len(biases)} biases: at most {MAX_BIASES} are taken")
        return biases

    @field_validator("bad_words")
    @classmethod
    def _words(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        if "" in words:
            raise ValueError("an empty bad word would forbid every token")
        return _few("bad words", words, MAX_BAD_WORDS)

    @model_validator(mode="after")
    def _together(self) -> SamplingParams:
        if self.max_tokens == 0 and self.prompt_logprobs is None:
            raise ValueError("max_tokens = 0 asks for no answer: give at least 1, or ask for prompt_logprobs")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens = {self.min_tokens} is more than max_tokens = {self.max_tokens}")
        if self.best_of is not None and self.best_of < self.n:
            raise ValueError(f"best_of = {self.best_of} is less than n = {self.n}: draw at least what is to be given")
        if self.constraint is not None:
            for name in ("min_tokens", "bad_words", "ignore_eos"):
                if getattr(self, name):
                    raise ValueError(f"{name} and a constraint may contradict each other: leave one of them out")
        return self

    @model_validator(mode="after")
    def _beams(self) -> SamplingParams:
        if self.beam_width is None:
            for name in ("length_penalty", "early_stopping"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name} belongs to beam search: give beam_width too, or leave it out")
            return self
        for name in NOT_FOR_BEAMS:
            if getattr(self, name) != type(self).model_fields[name].get_default(call_default_factory=True):
                raise ValueError(f"beam search goes by the model's own probabilities, without {name}: leave it out")
        if self.n > self.beam_width:
            raise ValueError(f"n = {self.n} is more than beam_width = {self.beam_width}: keep as many beams as answers")
        if self.logprobs:
            raise ValueError(f"logprobs = {self.logprobs}: beam search gives no alternatives, ask for logprobs = 0")
        return self

    def with_(self, changes: Mapping[str, Any]) -> SamplingParams:
        """These parameters with some of them changed, validated again."""
        return SamplingParams(**{**dict(self), **changes})

    def seeded(self) -> SamplingParams:
        """These parameters with a seed: their own, or else a fresh one."""
        return self if self.seed is not None else self.with_({"seed": secrets.randbits(63)})

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raises `InputError` for what a vocabulary of this size cannot give."""
        for name in ("logprobs", "prompt_logprobs"):
            if (getattr(self, name) or 0) > vocab_size:
                raise InputError(f"{name} = {getattr(self, name)}: the vocabulary has {vocab_size} tokens")
        if self.logit_bias and max(self.logit_bias) >= vocab_size:
            raise InputError(
                f"logit_bias has the token id {max(self.logit_bias)}, and the model's vocabulary ends at "
                f"{vocab_size - 1}"
            )


def _few(what: str, texts: tuple[str, ...], most: int) -> tuple[str, ...]:
    if len(texts) > most:
        raise ValueError(f"there are {len(texts)} {what}: at most {most} are taken")
    if (letters := sum(map(len, texts))) > MAX_LETTERS:
        raise ValueError(f"the {what} have {letters} letters together: at most {MAX_LETTERS} are taken")
    return texts
