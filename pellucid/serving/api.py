"""What may be asked: the bodies of OpenAI's API, and the few fields that are ours.

A field that is not here is an error, never ignored. The ranges of sampling parameters are checked where they are
used, by `SamplingParams`. Source: the API reference of OpenAI, "Completions", "Chat", "Embeddings" and "Models".
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

MOST_LOGPROBS = 20


class Asked(BaseModel):
    """A body: types as they are written ("1" is no number), no unknown fields, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(Asked):
    include_usage: bool | None = None


class AskedSampling(Asked):
    """What both endpoints take. `None` asks for the default, which GET /v1/models shows."""

    model: str | None = Field(
        None, description="The model or one of its adapters, by name; the model if it is left out."
    )
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None
    max_tokens: int | None = None
    stop: str | list[str] | None = Field(None, description="a text, or a list of texts")
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = Field(None, description="Token ids, and what is added to their logits.")
    seed: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, description="Who asks: it changes nothing.")
    # Not in OpenAI's API
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    stop_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    ignore_eos: bool | None = None
    constraint: dict[str, Any] | None = Field(
        None, description="One of json_schema, json_object, regex, choice, grammar."
    )
    beam_width: int | None = Field(None, description="Beam search: beginnings that are kept; nothing is drawn.")
    length_penalty: float | None = Field(None, description="Beams are in order of ln P / length ^ this.")
    early_stopping: bool | Literal["never"] | None = None

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> AskedSampling:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options go with a stream only: set 'stream' to true, or leave them out")
        if self.beam_width is not None and self.stream:
            raise ValueError("the beams are known only at the end: ask without 'stream', or without 'beam_width'")
        return self

    def sampling(self) -> dict[str, Any]:
        """The sampling parameters among the fields, under the names of `SamplingParams`."""
        asked = {name: getattr(self, name) for name in SAMPLING if getattr(self, name) is not None}
        if self.logit_bias is not None:
            asked["logit_bias"] = dict(self.logit_bias)
        return asked


SAMPLING = (
    "temperature", "top_p", "n", "max_tokens", "stop", "presence_penalty", "frequency_penalty", "seed", "top_k",
    "min_p", "typical_p", "repetition_penalty", "min_tokens", "stop_token_ids", "bad_words", "ignore_eos", "constraint",
    "beam_width", "length_penalty", "early_stopping",
)  # fmt: skip


class CompletionAsked(AskedSampling):
    """POST /v1/completions"""

    prompt: str | list[str] | list[int] | list[list[int]] = Field(
        description="a text, a list of texts, a list of token ids, or a list of lists of token ids"
    )
    best_of: int | None = None
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    suffix: None = Field(None, description="nothing: a text before a given end is not supported")


class Function(Asked):
    name: Annotated[str, Field(pattern=r"^[\w.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: Literal[False] | None = Field(None, description="The arguments are not held to the schema.")


class Tool(Asked):
    type: Literal["function"]
    function: Function


class JsonSchema(Asked):
    name: str
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Asked):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _schema_where_it_belongs(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("'json_schema' goes with the type 'json_schema', and that type needs it")
        return self


class Message(Asked):
    """One turn. Fields that are null are left out, as clients send back whole messages."""

    role: str
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {name: value for name, value in given.items() if value is not None}


class ChatAsked(AskedSampling):
    """POST /v1/chat/completions"""

    messages: list[Message]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto"] | None = Field(None, description="'none' or 'auto'; no call can be forced.")
    parallel_tool_calls: Literal[True] | None = Field(None, description="A model may always call several tools.")
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="What else the chat template reads.")

    @model_validator(mode="after")
    def _together(self) -> ChatAsked:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs 'logprobs' to be true")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("max_tokens and max_completion_tokens are the same: give one of them")
        if self.response_format is not None and self.response_format.type != "text" and self.constraint is not None:
            raise ValueError("response_format and constraint both say what an answer looks like: give one of them")
        return self

    @field_validator("chat_template_kwargs")
    @classmethod
    def _variables(cls, given: dict[str, Any] | None) -> dict[str, Any] | None:
        taken = {"self", "tokenizer", "messages", "tools", "add_generation_prompt"} & set(given or {})
        if taken:
            raise ValueError(f"{', '.join(sorted(taken))} cannot be set here")
        return given


class EmbeddingAsked(Asked):
    """POST /v1/embeddings: the mean of the final hidden states of each text, of length 1."""

    model: str | None = Field(
        None, description="The model or one of its adapters, by name; the model if it is left out."
    )
    input: str | list[str] | list[int] | list[list[int]] = Field(
        description="a text, a list of texts, a list of token ids, or a list of lists of token ids"
    )
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(
        None, ge=1, description="The first so many entries of each vector, which then gets length 1 again."
    )
    user: str | None = Field(None, description="Who asks: it changes nothing.")


class TokenizeAsked(Asked):
    """POST /tokenize: of a text, or of messages as the chat template writes them."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool = Field(True, description="Whether a text gets the BOS token that the tokenizer adds.")
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _one_of_them(self) -> TokenizeAsked:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give 'prompt' or 'messages', one of them")
        return self


class DetokenizeAsked(Asked):
    """POST /detokenize"""

    model: str | None = None
    tokens: list[int]
