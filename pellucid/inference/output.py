"""What comes of an engine that nobody else drives: one answer as it is written, or those to many prompts, in order."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType

from pellucid.errors import PellucidError
from pellucid.inference.engine import Engine
from pellucid.inference.events import Event, Score, seed_of
from pellucid.inference.generate import Completion, new_completion
from pellucid.inference.params import SamplingParams


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


def stream(
    engine: Engine, prompt: Sequence[int], params: SamplingParams, *, in_chat: bool = False, adapter: str | None = None
) -> Generator[Event, None, None]:
    """The tokens of one request as they are drawn. See `Engine.add`, whose errors are raised at the call, and
    `events_of`."""
    return events_of(engine, engine.add(prompt, params, in_chat=in_chat, adapter=adapter))


def events_of(engine: Engine, number: int) -> Generator[Event, None, None]:
    """The events of request `number`, the only one under way. Broken off, it gives back what it holds at once.

    Raises `PellucidError` where no token can be drawn.
    """
    try:
        while engine.busy:
            for event in engine.step():
                if event.finish_reason == "error":
                    raise PellucidError(str(event.finish_detail))
                yield event
    finally:
        engine.abort(number)


class Outputs:
    """Prompts that are answered together: `add` each, then iterate. Inside a `with`, whose end aborts what is left."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self.done = 0
        self._outputs: list[Output] = []
        self._numbers: dict[int, int] = {}  # the engine's id -> place among the prompts
        self._scores: dict[int, tuple[Score, ...]] = {}
        self._only_read: set[int] = set()  # prompts with max_tokens = 0: to be scored, not answered
        self._started = time.perf_counter()

    def __enter__(self) -> Outputs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in self._numbers:
            self.engine.abort(number)

    def __len__(self) -> int:
        return len(self._outputs)

    def add(
        self, prompt: Sequence[int], params: SamplingParams, *, in_chat: bool = False, adapter: str | None = None
    ) -> None:
        """One more prompt: see `Engine.add`."""
        params = params.seeded()
        if params.max_tokens == 0:
            self._only_read.add(len(self._outputs))
            params = params.with_({"max_tokens": 1})  # its token is thrown away
        number = self.engine.add(prompt, params, in_chat=in_chat, adapter=adapter)
        self._numbers[number] = len(self._outputs)
        answers = (new_completion(len(prompt), params, seed_of(params, index)) for index in range(params.n))
        self._outputs.append(Output(tuple(prompt), tuple(answers)))

    def answered(self, after_step: Callable[[], None] = lambda: None) -> Iterator[Output]:
        """In the order of the prompts, each as soon as it and those before it are done; `after_step` is called often.

        Raises `PellucidError` where no token of an answer can be drawn.
        """
        left = [len(one.answers) for one in self._outputs]
        given = 0
        while given < len(left):
            for event in self.engine.step():
                place = self._numbers[event.id]
                if place not in self._only_read:
                    self._outputs[place].answers[event.index].take(event, time.perf_counter() - self._started)
                if event.prompt_logprobs is not None:
                    self._scores[place] = event.prompt_logprobs
                if event.finish_reason is not None:
                    left[place] -= 1
                    self.done += not left[place]
            after_step()
            while given < len(left) and not left[given]:
                one = self._outputs[given]
                yield Output(one.prompt, one.answers, self._scores.pop(given, None))
                given += 1


def answer_all(
    engine: Engine, prompts: Sequence[Sequence[int]], params: SamplingParams, *, in_chat: bool = False
) -> list[Completion]:
    """The answer to each prompt of token ids. Errors as `Outputs` raises them, and then nothing is left under way."""
    with Outputs(engine) as outputs:
        for prompt in prompts:
            outputs.add(prompt, params, in_chat=in_chat)
        return [one.answers[0] for one in outputs.answered()]
