"""`LLM`: a model that answers many prompts at once, from Python."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pellucid.checkpoints.load import load
from pellucid.inference.engine import Engine, Event, Score, seed_of
from pellucid.inference.generate import Completion, new_completion, one_each, prompt_ids
from pellucid.inference.params import SamplingParams
from pellucid.inference.presets import resolve
from pellucid.operations.hardware import best_precision, use_best_threads

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Output:
    """The answers to one prompt, `params.n` of them. prompt_logprobs: as in `engine.Event`, None unless asked for."""

    prompt: tuple[int, ...]
    answers: tuple[Completion, ...]
    prompt_logprobs: tuple[Score, ...] | None = None

    @property
    def text(self) -> str:
        """Of the first answer."""
        return self.answers[0].text


class LLM:
    """A model and the engine that runs it.

    name: as for `pellucid.load`. dtype: "auto" takes the precision that is faster here, which is measured once.
    options: of the `Engine`, such as num_blocks or max_sequences.
    """

    def __init__(self, name: str | Path, *, dtype: str = "auto", **options: Any):
        use_best_threads()
        model, self.tokenizer = load(name, dtype=best_precision(dtype).name)
        self.engine = Engine(model, self.tokenizer, **options)

    def generate(
        self,
        prompts: str | Sequence[str | Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[Output]:
        """Answers to each prompt: text, or token ids taken as they are.

        params: for all, or one for each; None: what the model's generation_config.json says.

        Raises `InputError` for a prompt that cannot be answered, before any is; `PellucidError` where none of the
        tokens of an answer can be drawn.
        """
        several = [prompts] if isinstance(prompts, str) else list(prompts)
        ids = [prompt_ids(self.tokenizer, one) if isinstance(one, str) else list(one) for one in several]
        return self._answers(ids, self._each(params, len(ids)))

    def chat(
        self,
        conversations: Sequence[Message] | Sequence[Sequence[Message]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[Output]:
        """The assistant's next turn in a conversation, or in each of several, through the model's chat template."""
        single = bool(conversations) and isinstance(conversations[0], dict)
        several = cast("Sequence[Sequence[Message]]", [conversations] if single else conversations)
        ids = [self.tokenizer.apply_chat_template(one, add_generation_prompt=True).ids for one in several]
        return self._answers(ids, self._each(params, len(ids)))

    def _each(self, params: SamplingParams | Sequence[SamplingParams] | None, count: int) -> list[SamplingParams]:
        if params is None:
            params = resolve(generation_config=self.engine.model.generation_config).params
        return [one.seeded() for one in one_each(params, count)]

    def _answers(self, prompts: list[list[int]], params: list[SamplingParams]) -> list[Output]:
        started = time.perf_counter()
        numbers: dict[int, int] = {}
        try:
            for number, asked in enumerate(zip(prompts, params, strict=True)):
                numbers[self.engine.add(*asked)] = number
            answers = [
                [new_completion(len(prompt), one, seed_of(one, index)) for index in range(one.n)]
                for prompt, one in zip(prompts, params, strict=True)
            ]
            scores: list[tuple[Score, ...] | None] = [None] * len(prompts)
            for event in self._events():
                number = numbers[event.id]
                answers[number][event.index].take(event, time.perf_counter() - started)
                if event.prompt_logprobs is not None:
                    scores[number] = event.prompt_logprobs
        finally:
            for id_ in numbers:
                self.engine.abort(id_)
        pairs = zip(prompts, answers, scores, strict=True)
        return [Output(tuple(prompt), tuple(each), score) for prompt, each, score in pairs]

    def _events(self) -> Iterator[Event]:
        while self.engine.busy:
            yield from self.engine.step()
