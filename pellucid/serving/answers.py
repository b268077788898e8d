"""What is answered: the bodies of OpenAI's API.

Source: the API reference of OpenAI, "Completions", "Chat", "Embeddings" and "Models"; /tokenize and /detokenize are as
vLLM has them.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel


class Usage(BaseModel):
    """Tokens: completion_tokens are all that were drawn, stop tokens too."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


# "error": no token could be drawn, such as where a constraint has led into a dead end; finish_detail says why.
FinishReason = Literal["stop", "length", "tool_calls", "error"]
FinishDetail = str | int | None  # the stop string, the id of the stop token, "max_tokens", "context" or "constraint"


class CompletionLogprobs(BaseModel):
    """One entry a token. The first token of a prompt has no probability. text_offset: characters before the token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None
    finish_detail: FinishDetail = None


class Completion(BaseModel):
    """The answer of /v1/completions, and each part of it in a stream."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class FunctionCall(BaseModel):
    name: str
    arguments: str


class ToolCall(BaseModel):
    index: int | None = None  # in a stream
    id: str
    type: Literal["function"]
    function: FunctionCall


class TokenLogprob(BaseModel):
    """`bytes`: of the token, which may be part of a character; `token`: its text."""

    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(TokenLogprob):
    top_logprobs: list[TokenLogprob]


class ChatLogprobs(BaseModel):
    content: list[ChatLogprob]


class Answer(BaseModel):
    """The model's message, or a part of it in a stream."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: list[ToolCall] | None = None


class ChatChoice(BaseModel):
    index: int
    message: Answer
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason
    finish_detail: FinishDetail = None


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class ChunkChoice(BaseModel):
    index: int
    delta: Answer
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None
    finish_detail: FinishDetail = None


class ChatChunk(BaseModel):
    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None


class Sourced(BaseModel):
    """A default, and where it comes from: a flag, the model's own file, or built in."""

    value: Any
    source: str


class Model(BaseModel):
    """parent: of an adapter, the model that it changes. max_model_len: tokens of the context, the answer included.
    sampling: the defaults of a chat."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    parent: str | None
    max_model_len: int
    sampling: dict[str, Sourced]


class Models(BaseModel):
    object: Literal["list"]
    data: list[Model]


class Embedding(BaseModel):
    """embedding: numbers, or in base64 their 4 bytes each (float32, the lowest first)."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class Embeddings(BaseModel):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class Tokens(BaseModel):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class Text(BaseModel):
    prompt: str


class Health(BaseModel):
    status: Literal["ok", "stopped"]


class Problem(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class Failure(BaseModel):
    """Every answer that is an error."""

    error: Problem
