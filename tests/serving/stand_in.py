"""An engine that says what it is told to, and a real one over a tiny model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pellucid.errors import InputError
from pellucid.inference.engine import Engine
from pellucid.inference.events import Event
from pellucid.inference.params import SamplingParams
from pellucid.models.config import ModelConfig
from pellucid.models.decoder import Decoder
from pellucid.tokenizer.tokenizer import Tokenizer
from tests.checkpoints.tiny import tiny_tokenizer

TEMPLATE = (
    "{% if tools %}<|im_start|>tools\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}"
    "{% for call in m.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chat_tokenizer(template: str = TEMPLATE) -> Tokenizer:
    tokenizer = tiny_tokenizer()
    return Tokenizer(tokenizer.definition, tokenizer.config, {"default": template})


def tiny_decoder(max_positions: int = 256) -> Decoder:
    config = ModelConfig(
        vocab_size=272,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        intermediate_size=48,
        max_positions=max_positions,
        initializer_range=0.5,
    )
    return Decoder(config, seed=0).eval()


def tiny_engine(max_positions: int = 256) -> Engine:
    """A real engine, whose cache is small enough to be full now and then."""
    return Engine(tiny_decoder(max_positions), chat_tokenizer(), num_blocks=40, max_sequences=8, max_tokens_per_step=64)


class Scripted:
    """`script` gives the text of an answer from the text of its prompt; a token a step, and `seconds` for a step."""

    def __init__(
        self, script: Callable[[str], str] | str, tokenizer: Tokenizer | None = None, seconds: float = 0.0
    ) -> None:
        self.tokenizer, self.max_length, self.vocab_size = tokenizer or chat_tokenizer(), 4096, 272
        self.adapters = ()
        self._script = script if callable(script) else lambda _: str(script)
        self._seconds = seconds
        self.added = self.aborted = 0
        self.steps = 0
        self._under_way: dict[int, dict[int, Iterator[Event]]] = {}  # by request, by index of the answer

    @property
    def busy(self) -> bool:
        return bool(self._under_way)

    def stats(self) -> dict[str, float]:
        return {"running": len(self._under_way), "waiting": 0, "blocks_used": len(self._under_way)}

    def adapter(self, name: str | None) -> str | None:
        return name

    def prepare(
        self, prompt: Sequence[int], params: SamplingParams, *, in_chat: bool = False, adapter: str | None = None
    ) -> tuple[Sequence[int], SamplingParams]:
        return prompt, params

    def queue(self, asked: tuple[Sequence[int], SamplingParams]) -> int:
        prompt, params = asked
        if len(prompt) >= self.max_length:
            raise InputError(f"the prompt has {len(prompt)} tokens and the context holds {self.max_length}")
        params.check_vocabulary(self.vocab_size)
        self.added += 1
        number = self.added
        self._under_way[number] = {index: self.answer(number, index, list(prompt), params) for index in range(params.n)}
        return number

    def abort(self, number: int) -> None:
        self.aborted += self._under_way.pop(number, None) is not None

    def step(self) -> list[Event]:
        self.steps += 1
        time.sleep(self._seconds)
        events = [next(answer) for answers in self._under_way.values() for answer in answers.values()]
        for event in events:
            if event.finish_reason is not None:
                del self._under_way[event.id][event.index]
                if not self._under_way[event.id]:
                    del self._under_way[event.id]
        return events

    def answer(self, number: int, index: int, prompt: list[int], params: SamplingParams) -> Iterator[Event]:
        end = self.tokenizer.eos_id
        assert end is not None
        ids = [*self.tokenizer.encode(self._script(self.tokenizer.decode(prompt)), allow_special=True), end]
        decoder = self.tokenizer.stream_decoder()
        most = len(ids) if params.max_tokens is None else min(params.max_tokens, len(ids))
        for place, token in enumerate(ids[:most]):
            reason = "stop" if token == end else "length" if place + 1 == most else None
            text = "" if token == end else decoder.push(token)
            if reason is not None:
                text += decoder.finish()
            yield Event(number, index, token, text, *self._chance(token, params), reason, token if reason else None)

    def _chance(self, token: int, params: SamplingParams) -> tuple[Any, Any]:
        if params.logprobs is None:
            return None, ()
        return -0.5, tuple((token + place, -0.5 - place) for place in range(params.logprobs))
