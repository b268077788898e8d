"""Promise I1: log-probabilities are the same to the last bit, whatever is computed beside them."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import pellucid
from pellucid.errors import InputError
from pellucid.inference.engine import Engine
from pellucid.inference.events import Event
from pellucid.inference.native_step import why_not_native
from pellucid.inference.params import SamplingParams
from pellucid.models.decoder import Decoder
from tests.checkpoints.tiny import CONFIGS, random_model, tiny_tokenizer
from tests.inference.tiny import ByteTokenizer, tiny_model

TEXT = (
    "Once upon a time, in a village far from any road, there lived an old clockmaker who had never once been late. " * 2
)
SCORED = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=3, prompt_logprobs=0)
PLAIN = SCORED.with_({"prompt_logprobs": None})  # its prompt may come from the prefix cache


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    """Sums that are split among threads would show."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def model(request: pytest.FixtureRequest) -> Decoder:
    model = random_model(CONFIGS["llama"]).to(request.param)
    if reason := why_not_native(model):
        pytest.skip(f"no native step here: {reason}")
    return model


def engine(model: Decoder, **options: Any) -> Engine:
    return Engine(model, tiny_tokenizer(), deterministic=True, **{"num_blocks": 64} | options)


def prompts(count: int) -> list[list[int]]:
    rng = random.Random(5)
    return [[rng.randrange(256) for _ in range(rng.randint(20, 40))] for _ in range(count)]


def run(one: Engine, asked: list[tuple[list[int], SamplingParams]]) -> list[list[Event]]:
    """The events of each request."""
    ids = [one.add(*each) for each in asked]
    found: dict[int, list[Event]] = defaultdict(list)
    while one.busy:
        for event in one.step():
            found[event.id].append(event)
    return [found[number] for number in ids]


def scores(events: list[Event]) -> list[tuple[object, ...]]:
    """All that was computed of an answer, exactly."""
    return [(event.token_id, event.logprob, event.alternatives, event.prompt_logprobs) for event in events]


def test_in_a_batch_and_in_any_pieces_as_alone(model: Decoder) -> None:
    asked = [(prompt, SCORED) for prompt in prompts(8)]
    alone = [scores(run(engine(model), [each])[0]) for each in asked]
    for options in (
        {},
        {"max_tokens_per_step": 1, "max_sequences": 1},
        {"max_tokens_per_step": 3, "max_sequences": 3},
        {"max_tokens_per_step": 17, "max_sequences": 8},
        {"max_tokens_per_step": 70, "max_sequences": 5},
    ):
        assert [scores(events) for events in run(engine(model, **options), asked)] == alone, options


def test_after_a_prefix_hit_as_without(model: Decoder) -> None:
    [prompt, *others] = prompts(4)
    one = engine(model)
    first = scores(run(one, [(prompt, PLAIN)])[0])
    again = scores(run(one, [(prompt, PLAIN), *((other, PLAIN) for other in others)])[0])
    assert one.stats()["prefix_hits"] > 0 and again == first


def test_after_preemption_as_without(model: Decoder) -> None:
    asked = [(prompt, PLAIN.with_({"max_tokens": 30})) for prompt in prompts(4)]
    alone = [scores(run(engine(model), [each])[0]) for each in asked]
    one = engine(model, num_blocks=7)
    assert [scores(events) for events in run(one, asked)] == alone
    assert one.stats()["preemptions"] > 0


@pytest.mark.parametrize(
    "how", [{"dtype": "float32"}, {"dtype": "bfloat16"}, {"dtype": "bfloat16", "quantize": "stored"}]
)
def test_a_real_model_in_a_batch_as_alone(how: dict[str, str]) -> None:
    model, tokenizer = pellucid.load("smollm2", **how)
    if reason := why_not_native(model):
        pytest.skip(f"no native step here: {reason}")
    asked = [
        (tokenizer.encode(text), PLAIN.with_({"max_tokens": 3}))
        for text in ("The capital of France is", "1, 2, 3,", "def fibonacci(n):", TEXT)
    ]
    alone, pieces, together = (
        Engine(model, tokenizer, num_blocks=32, deterministic=True, max_tokens_per_step=budget, max_sequences=4)
        for budget in (512, 7, 512)
    )
    expected = [scores(run(alone, [each])[0]) for each in asked]
    assert [scores(events) for events in run(together, asked)] == expected
    assert [scores(events) for events in run(pieces, asked)] == expected


def test_where_it_cannot_be_kept_it_is_refused() -> None:
    with pytest.raises(InputError, match=r"deterministic needs the native step.*: its positions are sinusoidal"):
        Engine(tiny_model("sinusoidal"), ByteTokenizer(), deterministic=True)
    with pytest.raises(InputError, match="it is switched off; leave deterministic out"):
        Engine(tiny_model(), ByteTokenizer(), deterministic=True, native=False)
