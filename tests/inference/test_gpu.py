"""The engine on a GPU gives what it gives on the processor."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from pellucid.inference.engine import Engine
from pellucid.inference.params import SamplingParams
from pellucid.inference.runner import Runner
from pellucid.models.decoder import Decoder
from tests.checkpoints.tiny import random_model, tiny_tokenizer
from tests.inference.test_runner import MODELS, run_all, texts

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
WIDE = {"head_dim": 16}  # FlexAttention's kernels for GPUs take no narrower heads


def wide(name: str) -> Decoder:
    return random_model(MODELS[name].model_copy(update=WIDE))


def there(model: Decoder) -> Decoder:
    return copy.deepcopy(model).cuda()


def answers(model: Decoder, asked: list[list[int]], **options: Any) -> tuple[list[list[int]], Engine]:
    greedy = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
    engine = Engine(model, tiny_tokenizer(), num_blocks=64, max_tokens_per_step=64, max_sequences=16, **options)
    places = {engine.add(prompt, greedy): place for place, prompt in enumerate(asked)}
    found: list[list[int]] = [[] for _ in asked]
    while engine.busy:
        for event in engine.step():
            found[places[event.id]].append(event.token_id)
    return found, engine


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral", "gemma2", "alibi", "qwen3"])
def test_answers_are_those_of_the_processor(name: str, graphs: bool) -> None:
    model = wide(name)
    asked = texts(model, 7)
    expected, _ = answers(model, asked)
    found, engine = answers(there(model), asked, graphs=graphs)
    assert found == expected
    assert engine.runner.gpu is not None and bool(engine.runner.gpu.buckets) == graphs
    assert engine.runner.how == (
        "FlexAttention and CUDA graphs" if graphs else "FlexAttention (no CUDA graphs: they are switched off)"
    )


@pytest.mark.parametrize("name", ["llama", "gemma2"])
@torch.no_grad()
def test_a_cache_of_bytes_is_read_from_a_gpu(name: str) -> None:
    model = wide(name)
    sequences = texts(model, 3)
    here = run_all(Runner(model, 16, native=False, int8_cache=True), sequences, 1, 5)
    for ours, theirs in zip(run_all(Runner(there(model), 16, int8_cache=True), sequences, 1, 5), here, strict=True):
        assert (ours.cpu() - theirs).square().mean().sqrt() < 0.01 * theirs.std()


@torch.no_grad()
def test_a_recorded_step_is_the_step_that_is_computed() -> None:
    model = there(wide("llama"))
    sequences = [tokens[:9] for tokens in texts(model, 4)]
    recorded, called = Runner(model, 16), Runner(model, 16, graphs=False)
    for ours, theirs in zip(run_all(recorded, sequences, 2, 1), run_all(called, sequences, 2, 1), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=3e-4)
    assert recorded.gpu is not None and recorded.gpu.buckets and called.gpu is not None and not called.gpu.buckets


@torch.no_grad()
def test_weights_that_are_written_over_are_read_by_recorded_steps() -> None:
    model = there(wide("llama"))
    asked = texts(model, 3)
    engine = Engine(model, tiny_tokenizer(), num_blocks=64)
    other = there(model)
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter, std=0.2)

    def ask(one: Engine) -> list[int]:
        one.add(asked[0], SamplingParams(temperature=0, max_tokens=12, ignore_eos=True))
        return [event.token_id for _ in range(13) for event in one.step()]

    before = ask(engine)
    model.load_state_dict(other.state_dict())
    engine.weights_changed()
    after = ask(engine)
    assert before != after
    assert after == ask(Engine(other, tiny_tokenizer(), num_blocks=64))
