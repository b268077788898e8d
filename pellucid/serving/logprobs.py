"""Log-probabilities in the shapes of OpenAI's two endpoints (promise I6)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from pellucid.errors import InputError
from pellucid.serving.answers import ChatLogprob, CompletionLogprobs, TokenLogprob

if TYPE_CHECKING:
    from pellucid.tokenizer.tokenizer import Tokenizer

LEAST = -9999.0  # stands for ln 0, which JSON cannot write


class Scored(NamedTuple):
    """A token of a prompt or an answer. logprob: None for the first token of a prompt, which nothing predicts."""

    token: int
    logprob: float | None
    alternatives: Sequence[tuple[int, float]]  # (token, ln P) of the most likely ones


def token_bytes(tokenizer: Tokenizer, token: int) -> bytes:
    """What the token adds to a text. A model may have more tokens than its tokenizer: those are named by number."""
    try:
        return tokenizer.token_bytes(token)
    except InputError:
        return f"<token {token}>".encode()


def token_text(raw: bytes) -> str:
    """The text of a token's bytes; part of a character is written `bytes:\\xe2\\x80`, as OpenAI's API does."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def in_chat(tokenizer: Tokenizer, scored: Scored) -> ChatLogprob:
    """One entry of `logprobs.content` of a chat."""

    def one(token: int, logprob: float | None) -> TokenLogprob:
        raw = token_bytes(tokenizer, token)
        return TokenLogprob(token=token_text(raw), logprob=_finite(logprob), bytes=list(raw))

    entry = one(scored.token, scored.logprob)
    top = [one(token, logprob) for token, logprob in scored.alternatives]
    return ChatLogprob(token=entry.token, logprob=entry.logprob, bytes=entry.bytes, top_logprobs=top)


class CompletionTable:
    """Builds the `logprobs` of a completion, part by part; it knows how long the text is by then.

    begun: the text goes on with another, which is not shown.
    """

    def __init__(self, tokenizer: Tokenizer, *, begun: bool) -> None:
        self._tokenizer = tokenizer
        self._decoder = tokenizer.stream_decoder(begun=begun)
        self._length = 0

    def add(self, scored: Sequence[Scored], *, unwritten: int = 0) -> CompletionLogprobs:
        """The entries of the next tokens. The first `unwritten` of them are not in the text that is shown."""
        table = CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
        for place, one in enumerate(scored):
            table.tokens.append(self._name(one.token))
            table.token_logprobs.append(None if one.logprob is None else _finite(one.logprob))
            table.top_logprobs.append(self._top(one))
            table.text_offset.append(self._length)
            if place >= unwritten and one.token < self._tokenizer.vocab_size:
                self._length += len(self._decoder.push(one.token))
        return table

    def _name(self, token: int) -> str:
        return token_text(token_bytes(self._tokenizer, token))

    def _top(self, one: Scored) -> dict[str, float] | None:
        """The most likely tokens and the token itself. Of two that are written alike, the more likely one is shown."""
        if one.logprob is None:
            return None
        top: dict[str, float] = {}
        for token, logprob in [*one.alternatives, (one.token, one.logprob)]:
            name = self._name(token)
            top[name] = max(_finite(logprob), top.get(name, LEAST))
        return top


def joined(tables: Sequence[CompletionLogprobs]) -> CompletionLogprobs:
    """The table of the whole answer."""
    return CompletionLogprobs(
        tokens=[entry for table in tables for entry in table.tokens],
        token_logprobs=[entry for table in tables for entry in table.token_logprobs],
        top_logprobs=[entry for table in tables for entry in table.top_logprobs],
        text_offset=[entry for table in tables for entry in table.text_offset],
    )


def _finite(logprob: float | None) -> float:
    return LEAST if logprob is None else max(logprob, LEAST)
