"""A conversation with a model: its turns, and what the last answer cost."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from pellucid.errors import InputError
from pellucid.inference.output import events_of
from pellucid.inference.params import SamplingParams

if TYPE_CHECKING:
    from pellucid.inference.engine import Engine
    from pellucid.inference.events import Event


@dataclass(slots=True)
class Turn:
    """An answer as far as it has come. Seconds are from the question; finish_reason None: it was broken off."""

    prompt_tokens: int
    seed: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: Literal["stop", "length", "error"] | None = None
    finish_detail: str | int | None = None
    first_token_seconds: float = 0.0
    seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float | None:
        """Of the tokens after the first, whose time is mostly that of reading the prompt. None: there are none."""
        after = self.seconds - self.first_token_seconds
        return (len(self.token_ids) - 1) / after if len(self.token_ids) > 1 and after > 0 else None


class Conversation:
    """Turns of user and assistant. Every answer is to the whole history; nothing of it is ever cut.

    engine: which nobody else drives, of a model whose tokenizer has a chat template. Its prefix cache keeps what has
    been read and said, so that each turn computes what is new.
    params: of the next answer. With a seed, the n-th answer (from 0) is drawn with seed + n.
    """

    def __init__(self, engine: Engine, params: SamplingParams, system: str | None = None) -> None:
        self.engine, self.tokenizer, self.params = engine, engine.tokenizer, params
        self.system = system
        self.turns: list[dict[str, str]] = []
        self.last: Turn | None = None
        self._asked = -1  # the engine's number of the last question

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation as `{"role", "content"}`, the system prompt first."""
        start = [] if self.system is None else [{"role": "system", "content": self.system}]
        return start + self.turns

    @property
    def context_used(self) -> int:
        """Tokens of the context that the conversation took at the last answer."""
        return self.last.prompt_tokens + len(self.last.token_ids) if self.last else 0

    def reset(self) -> None:
        """Forget all turns; the system prompt stays."""
        self.turns, self.last = [], None

    def ask(self, text: str) -> Generator[Event, None, None]:
        """Answer `text`, token by token. An answer that is broken off (`close` the iterator) stays as far as it came.

        Raises `InputError`, and leaves the conversation as it was, when it no longer fits the context.
        """
        question = {"role": "user", "content": text}
        ids = self.tokenizer.apply_chat_template([*self.messages, question], add_generation_prompt=True).ids
        context = self.engine.max_length
        if len(ids) >= context:
            raise InputError(
                f"the conversation has {len(ids)} tokens and the context holds {context}, the answer included: "
                "ask something shorter, or forget the turns so far with /reset"
            )
        params = self.params.seeded()
        if self.params.seed is not None:
            params = params.with_({"seed": (self.params.seed + len(self.turns) // 2) % 2**63})
        self.engine.abort(self._asked)  # a question whose answer nobody has begun to read
        self._asked = self.engine.add(ids, params, in_chat=True)
        return self._answer(question, Turn(len(ids), params.seed or 0))

    def _answer(self, question: dict[str, str], turn: Turn) -> Generator[Event, None, None]:
        answer = {"role": "assistant", "content": ""}
        self.turns += [question, answer]
        self.last = turn
        started = time.perf_counter()
        with closing(events_of(self.engine, self._asked)) as events:
            for event in events:
                turn.seconds = time.perf_counter() - started
                turn.first_token_seconds = turn.first_token_seconds or turn.seconds
                turn.token_ids.append(event.token_id)
                turn.text += event.text
                answer["content"] = turn.text
                turn.finish_reason, turn.finish_detail = event.finish_reason, event.finish_detail
                yield event
