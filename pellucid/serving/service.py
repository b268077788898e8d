"""What all routes share: the model that is served, its defaults, the thread for texts, and the engine's loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from pellucid.errors import InputError, did_you_mean
from pellucid.inference.presets import Resolved, resolve
from pellucid.serving.answers import Usage
from pellucid.serving.errors import ApiError
from pellucid.serving.loop import EngineLoop
from pellucid.serving.metrics import Metrics

if TYPE_CHECKING:
    from pellucid.inference.engine import Engine

T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """How to serve.

    name: of the model, for clients. keys, hosts, origins: see `Guard`. max_answers: see `EngineLoop`; max_body: bytes;
    timeout: seconds for one request. flags, preset: sampling defaults of the command line. generation_config: the
    model's own.
    """

    name: str
    keys: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    max_answers: int = 256
    max_body: int = 16 * 2**20
    timeout: float = 600.0
    flags: Mapping[str, Any] = field(default_factory=dict)
    preset: str | None = None
    generation_config: Mapping[str, Any] = field(default_factory=dict)


class Service:
    """One model, served."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self.settings, self.engine = settings, engine
        self.tokenizer = engine.tokenizer
        self.adapters = [one for one in engine.adapters if one != engine.adapter(None)]
        if settings.name in self.adapters:
            raise InputError(f"the model and an adapter are both called {settings.name!r}: give one another name")
        self.max_length = engine.max_length
        self.metrics = Metrics(lambda: self.loop.stats)
        self.loop = EngineLoop(engine, self.metrics, max_answers=settings.max_answers, timeout=settings.timeout)
        self.started = int(time.time())
        # Templates and tokenization take their time with long texts; one thread keeps them off the event loop.
        self._texts = ThreadPoolExecutor(1, "texts")

    def warm_up(self) -> None:
        """Understand a first constraint, so that no client waits for what is done but once."""
        from pellucid.inference.params import Constraint, SamplingParams

        def understand() -> None:
            with suppress(InputError):  # the library is not there, or the model has no end token
                self.engine.prepare([0], SamplingParams(max_tokens=1, constraint=Constraint(json_object=True)))

        self.loop.in_reader_thread(understand)

    async def in_text_thread(self, work: Callable[[], T]) -> T:
        """The result of `work`, while others are served."""
        return await asyncio.get_running_loop().run_in_executor(self._texts, work)

    def prompt_ids(self, prompt: str | list[int]) -> list[int]:
        """A prompt's token ids: those that were given, or those of its text, with the BOS that the tokenizer adds."""
        from pellucid.inference.generate import prompt_ids

        return prompt_ids(self.tokenizer, prompt) if isinstance(prompt, str) else prompt

    async def stop(self) -> None:
        """End both threads."""
        await self.loop.stop()
        self._texts.shutdown(wait=False, cancel_futures=True)

    @property
    def models(self) -> list[str]:
        """What clients may name: the model, and each adapter that it answers with where that is asked for."""
        return [self.settings.name, *self.adapters]

    def adapter(self, name: str | None) -> str | None:
        """The adapter that a client calls a model; None: the model itself, which is also who names none.

        Raises `ApiError` (404) for a model that is not served here.
        """
        if name is None or name == self.settings.name:
            return None
        if name not in self.adapters:
            there = ", ".join(map(repr, self.models))
            message = f"there is no model {name!r} here{did_you_mean(name, self.models)}; there is {there}"
            raise ApiError(404, message, param="model", code="model_not_found")
        return name

    def sampling(self, asked: Mapping[str, Any], defaults: Mapping[str, Any]) -> Resolved:
        """A request's parameters: request > flag > the model's generation_config.json > built-in (promise I5)."""
        return resolve(
            request=asked,
            flags=self.settings.flags,
            preset_name=self.settings.preset,
            generation_config=self.settings.generation_config,
            defaults=defaults,
        )

    def check_prompt(self, ids: Sequence[int], name: str) -> None:
        """Raises `ApiError` (400) for a prompt that is empty, or leaves no room in the context for an answer."""
        if not ids:
            raise ApiError(400, f"{name} is empty: give at least one token")
        if len(ids) >= self.max_length:
            message = (
                f"{name} has {len(ids)} tokens and the context holds {self.max_length}, the answer included: "
                "make it shorter"
            )
            raise ApiError(400, message, code="context_length_exceeded")


def usage(prompts: Sequence[Sequence[int]], drawn: int) -> Usage:
    """The tokens of a request: those of its prompts once, however many answers each has, and all that were drawn."""
    read = sum(map(len, prompts))
    return Usage(prompt_tokens=read, completion_tokens=drawn, total_tokens=read + drawn)
