"""What Prometheus reads at /metrics.

Counters and histograms are filled by whoever knows: the engine's thread (tokens, times) and the routes (statuses). The
engine's own numbers - its queue, its cache - are read when they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST

FIRST_TOKEN = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)  # seconds
NEXT_TOKEN = (0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5)
WHOLE = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """The numbers of one server. engine_numbers: gives the engine's own, by name."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, engine_numbers: Callable[[], Mapping[str, float]]) -> None:
        self._registry = CollectorRegistry()
        self._responses = Counter(
            "pellucid_http_responses", "Answers to HTTP requests.", ["route", "status"], registry=self._registry
        )
        self._answers = Counter(
            "pellucid_answers", "Answers that ended, by what ended them.", ["reason"], registry=self._registry
        )
        self._prompt_tokens = Counter("pellucid_prompt_tokens", "Tokens of prompts.", registry=self._registry)
        self._tokens = Counter("pellucid_generated_tokens", "Tokens drawn.", registry=self._registry)
        self._first = Histogram(
            "pellucid_time_to_first_token_seconds",
            "From a request to the first token of an answer.",
            buckets=FIRST_TOKEN,
            registry=self._registry,
        )
        self._next = Histogram(
            "pellucid_time_between_tokens_seconds",
            "Between two tokens of an answer.",
            buckets=NEXT_TOKEN,
            registry=self._registry,
        )
        self._whole = Histogram(
            "pellucid_answer_seconds",
            "From a request to the last token of an answer.",
            buckets=WHOLE,
            registry=self._registry,
        )
        self._registry.register(_EngineNumbers(engine_numbers))

    def response(self, route: str, status: int) -> None:
        """An HTTP request was answered."""
        self._responses.labels(route, str(status)).inc()

    def asked(self, prompt_tokens: int) -> None:
        """A prompt was accepted."""
        self._prompt_tokens.inc(prompt_tokens)

    def token(self, seconds: float, *, first: bool) -> None:
        """A token was drawn, so long after the request (the first one) or after the token before it.

        No time is counted between tokens of one step (seconds 0).
        """
        self._tokens.inc()
        if first or seconds:
            (self._first if first else self._next).observe(seconds)

    def finished(self, reason: str, seconds: float) -> None:
        """An answer ended, so long after its request."""
        self._answers.labels(reason).inc()
        self._whole.observe(seconds)

    def aborted(self, answers: int) -> None:
        """So many answers will not be finished: the client has gone, the time was over, the engine failed."""
        self._answers.labels("aborted").inc(answers)

    def text(self) -> bytes:
        """All numbers in Prometheus' text format."""
        return generate_latest(self._registry)


# Of the engine's numbers, those that only grow
COUNTED = {
    "steps", "tokens_read", "tokens_drawn", "prefix_queries", "prefix_hits", "preemptions", "slot_steps_held",
    "slot_steps_taken", "token_steps", "slot_steps_contiguous", "drafts", "tokens_guessed", "guesses_taken",
}  # fmt: skip


class _EngineNumbers:
    """`pellucid_engine_*`: a gauge or a counter for each of the engine's numbers."""

    def __init__(self, numbers: Callable[[], Mapping[str, float]]) -> None:
        self._numbers = numbers

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        for name, value in self._numbers().items():
            kind = CounterMetricFamily if name in COUNTED else GaugeMetricFamily
            yield kind(f"pellucid_engine_{name}", f"The engine's {name.replace('_', ' ')}.", value=value)
