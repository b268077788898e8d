"""Clients that measure a server: so many at once, each with one streamed answer after the other.

Any server that answers POST /v1/completions as OpenAI's API has it, with `stream_options.include_usage`.
"""

from __future__ import annotations

import http.client
import itertools
import json
import random
import secrets
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, urlsplit

from pellucid.errors import InputError, PellucidError

WORDS = (
    "river stone quiet window seven garden letter under morning paper green often bread mountain answer cold music "
    "table winter small road open number yellow bird house water after silver long"
)
FIRST_WORDS = 8  # of the request that shows how many tokens a word is
SECONDS = 600.0  # that an answer may take


@dataclass(slots=True)
class Reply:
    """One request. times: of its start, and of each part of the answer; error: what went wrong, in words."""

    times: list[float]
    prompt_tokens: int = 0
    answer_tokens: int = 0
    error: str | None = None


@dataclass(slots=True)
class Level:
    """What so many clients at once measured. seconds: from the first request to the last answer."""

    concurrency: int
    replies: list[Reply] = field(default_factory=list)
    seconds: float = 0.0

    def summary(self) -> dict[str, Any]:
        """Tokens a second, and of the times (in seconds) the median and what 95 and 99 of a hundred stay below."""
        good = [one for one in self.replies if one.error is None]
        gaps = [after - before for one in good for before, after in zip(one.times[1:], one.times[2:], strict=False)]
        return {
            "concurrency": self.concurrency,
            "requests": len(self.replies),
            "errors": len(self.replies) - len(good),
            "seconds": self.seconds,
            "prompt_tokens_per_second": sum(one.prompt_tokens for one in good) / self.seconds,
            "answer_tokens_per_second": sum(one.answer_tokens for one in good) / self.seconds,
            "time_to_first_token": percentiles([one.times[1] - one.times[0] for one in good if len(one.times) > 1]),
            "time_between_tokens": percentiles(gaps),
            "end_to_end": percentiles([one.times[-1] - one.times[0] for one in good]),
        }


def percentiles(values: list[float]) -> dict[str, float] | None:
    """p50, p95 and p99 by linear interpolation; None where there is nothing."""
    if not values:
        return None
    cuts = statistics.quantiles(values, n=100, method="inclusive") if len(values) > 1 else values * 99
    return {f"p{share}": cuts[share - 1] for share in (50, 95, 99)}


class Bench:
    """A server as its clients see it. url: with or without /v1; key: sent with each request, None: none.

    Raises `InputError` for an address that is none, `PellucidError` where nobody answers there.
    """

    def __init__(self, url: str, *, model: str | None = None, key: str | None = None) -> None:
        parts = _address(url)
        self._parts, self._root = parts, parts.path.rstrip("/").removesuffix("/v1")
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self._numbers = itertools.count(secrets.randbelow(10**9))  # of prompts; another bench's are others
        self.model = model or self._first_model()
        self._extra: dict[str, Any] = {"ignore_eos": True}
        self.exact = True  # whether answers are as long as they are asked to be
        self._words_a_token = 1.0
        self._words_a_token = self._calibrated()

    def _first_model(self) -> str:
        try:
            return str(json.loads(self.text("/v1/models"))["data"][0]["id"])
        except (ValueError, LookupError, TypeError):
            raise PellucidError(
                f"{self._parts.geturl()}/v1/models lists no model as OpenAI's API does: give a server that has it"
            ) from None

    def text(self, path: str) -> str:
        """What is at `path`. Raises `PellucidError` where that cannot be had."""
        connection = self._connect()
        try:
            connection.request("GET", self._root + path, headers=self._headers)
            response = connection.getresponse()
            body = response.read().decode("utf-8", "replace")
        except (OSError, http.client.HTTPException) as error:
            raise PellucidError(f"no server answers at {self._parts.geturl()} ({error}): start it first") from None
        finally:
            connection.close()
        if response.status != 200:
            raise PellucidError(f"GET {path} gave status {response.status}: {body[:200]}")
        return body

    def level(
        self,
        concurrency: int,
        *,
        requests: int,
        prompt_tokens: int,
        answer_tokens: int,
        rate: float | None = None,
        done: Callable[[], None] = lambda: None,
    ) -> Level:
        """`requests` answers to prompts of which no two begin alike, at most `concurrency` at once.

        rate: requests a second that arrive, at random times (a Poisson process); None: as soon as one is answered.
        done: called after each.
        """
        level, started = Level(concurrency), time.perf_counter()
        work = enumerate(self._arrivals(requests, rate))
        lock = threading.Lock()

        def client() -> None:
            while True:
                with lock:
                    number, arrival = next(work, (-1, 0.0))
                if number < 0:
                    return
                time.sleep(max(0.0, started + arrival - time.perf_counter()))
                reply = self.ask(self._prompt(prompt_tokens), answer_tokens, number)
                level.replies.append(reply)
                done()

        clients = [threading.Thread(target=client, daemon=True) for _ in range(min(concurrency, requests))]
        for one in clients:
            one.start()
        for one in clients:
            one.join()
        level.seconds = time.perf_counter() - started
        return level

    def ask(self, prompt: str, answer_tokens: int, seed: int) -> Reply:
        """One streamed answer."""
        body = {
            "model": self.model, "prompt": prompt, "max_tokens": answer_tokens, "temperature": 1, "seed": seed,
            "stream": True, "stream_options": {"include_usage": True}, **self._extra,
        }  # fmt: skip
        reply = Reply([time.perf_counter()])
        connection = self._connect()
        try:
            connection.request("POST", f"{self._root}/v1/completions", json.dumps(body), self._headers)
            response = connection.getresponse()
            if response.status != 200:
                reply.error = f"{response.status}: {response.read().decode('utf-8', 'replace')[:200]}"
                return reply
            for event in _events(response):
                _take(reply, event)
        except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError, AttributeError) as error:
            reply.error = f"{type(error).__name__}: {error}"
        finally:
            connection.close()
        if reply.error is None and not reply.answer_tokens:
            reply.error = "the stream ended without the usage that was asked for"
        return reply

    def _connect(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        return kind(self._parts.hostname or "", self._parts.port, timeout=SECONDS)

    def _arrivals(self, requests: int, rate: float | None) -> list[float]:
        """When each request may begin, in seconds."""
        chance, times = random.Random(0), [0.0]
        for _ in range(requests - 1):
            times.append(times[-1] + (chance.expovariate(rate) if rate else 0.0))
        return times

    def _prompt(self, tokens: int) -> str:
        number = next(self._numbers)
        words = max(1, round(tokens * self._words_a_token) - 1)
        return f"{number} {' '.join(random.Random(number).choices(WORDS.split(), k=words))}"

    def _calibrated(self) -> float:
        """Words a token, from a first request; which also shows whether the server takes `ignore_eos`."""
        prompt = self._prompt(FIRST_WORDS)
        reply = self.ask(prompt, 2, 0)
        if reply.error is not None and reply.error.startswith("4"):
            self._extra, self.exact = {}, False
            reply = self.ask(prompt, 2, 0)
        if reply.error is not None:
            raise PellucidError(
                f"the server at {self._parts.geturl()} gave no answer to a first request: {reply.error}"
            )
        if reply.prompt_tokens < 1:
            raise PellucidError(
                f"the server at {self._parts.geturl()} counts no tokens of a prompt: it cannot be measured"
            )
        return FIRST_WORDS / reply.prompt_tokens


def _address(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return parts
    except ValueError:  # a port out of range
        pass
    raise InputError(f"--url {url}: give an address such as http://127.0.0.1:8000")


def _events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """The events of a stream, until [DONE]."""
    for line in response:
        data = line.decode().strip().removeprefix("data: ")
        if line.startswith(b"data: ") and data != "[DONE]":
            yield json.loads(data)


def _take(reply: Reply, event: dict[str, Any]) -> None:
    if "error" in event:
        error = event["error"]
        reply.error = str(error.get("message", error) if isinstance(error, dict) else error)
    if event.get("choices"):
        reply.times.append(time.perf_counter())
    if usage := event.get("usage"):
        reply.prompt_tokens, reply.answer_tokens = usage["prompt_tokens"], usage["completion_tokens"]
