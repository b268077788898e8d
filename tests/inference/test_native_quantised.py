"""Quantised models in the native step: the blocks are read as they lie, and what reads them is rounded to bytes."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

import pellucid
from pellucid.inference.engine import Engine
from pellucid.inference.params import SamplingParams
from pellucid.inference.runner import Runner
from pellucid.inference.step import Chunk, Step
from pellucid.layers.quantised import Quantised
from pellucid.models.decoder import Decoder
from pellucid.models.quantised import weight_bytes
from pellucid.operations.blocks import BYTES
from pellucid.operations.step import why_not
from pellucid.tokenizer.tokenizer import Tokenizer
from tests.checkpoints.tiny import CONFIGS, random_model
from tests.inference.tiny import ARCHITECTURES, tiny_model
from tests.models.few_bits import quantise

pytestmark = pytest.mark.skipif(why_not(torch.float32) is not None, reason="there is no native step here")

# Down-projections of the tiny models have rows of 48, which stay as they are: plain and quantised layers are mixed.
MODELS = CONFIGS | {name: tiny_model(name).config for name in ARCHITECTURES if name not in {*CONFIGS, "sinusoidal"}}


def all_logits(runner: Runner, tokens: list[int]) -> Tensor:
    """After every token of a text, which is read five at a time. (T, V)"""
    table = list(range(-(-len(tokens) // runner.cache.block_size)))
    parts = []
    for start in range(0, len(tokens), 5):
        piece = tokens[start : start + 5]
        parts.append(runner.run(Step((Chunk(piece, start, table, len(piece)),), ())).clone())
    return torch.cat(parts)


def a_text(model: Decoder, length: int) -> list[int]:
    return [random.Random(length).randrange(model.config.vocab_size) for _ in range(length)]


def rounded_to_bytes(x: Tensor) -> Tensor:
    """x = s q for each 32 of its numbers, s = max|x| / 127 and q the nearest whole number."""
    blocks = x.unflatten(-1, (-1, 32))
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    return torch.where(scale > 0, (blocks / scale).round() * scale, 0).flatten(-2)


@pytest.mark.parametrize("format", BYTES)
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_it_is_the_models_own_forward_over_rounded_inputs(
    name: str,
    format: str,  # noqa: A002
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = random_model(MODELS[name])
    quantise(model, format)
    before = weight_bytes(model)
    tokens = a_text(model, 24)
    runner = Runner(model, 4)
    assert runner.why_not is None
    ours = all_logits(runner, tokens)
    plain = Quantised.product
    monkeypatch.setattr(Quantised, "product", lambda self, x: plain(self, rounded_to_bytes(x)))
    whole = model(torch.tensor([tokens]))[0]
    # A number that lies between two bytes may be rounded either way where sums were made in another order.
    off = (ours - whole).abs() / (whole.abs().max() + 1)
    assert off.median() < 1e-5 and off.max() < 0.02
    assert weight_bytes(model) == before  # what became one matrix has no second copy


@pytest.mark.parametrize("format", BYTES)
@torch.no_grad()
def test_a_row_does_not_depend_on_its_neighbours(format: str) -> None:  # noqa: A002
    model = random_model(CONFIGS["llama"])
    quantise(model, format)
    tokens = a_text(model, 24)
    together = all_logits(Runner(model, 4), tokens)
    runner = Runner(model, 4)
    alone = [runner.run(Step((Chunk([token], place, [0, 1], 1),), ())).clone() for place, token in enumerate(tokens)]
    assert torch.equal(together, torch.cat(alone))


@torch.no_grad()
def test_layers_of_different_formats_stand_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    model, other, plain = (random_model(CONFIGS["llama-biases"]) for _ in range(3))
    quantise(model, "int8")
    quantise(other, "int4")
    model.blocks[1].attention.value = other.blocks[1].attention.value
    model.blocks[2].feed_forward.gate = plain.blocks[2].feed_forward.gate
    tokens = a_text(model, 24)
    ours = all_logits(Runner(model, 4), tokens)
    product = Quantised.product
    monkeypatch.setattr(Quantised, "product", lambda self, x: product(self, rounded_to_bytes(x)))
    off = (ours - model(torch.tensor([tokens]))[0]).abs() / (ours.abs().max() + 1)
    assert off.median() < 1e-5 and off.max() < 0.02


@pytest.fixture(scope="module")
def real() -> tuple[Decoder, Tokenizer]:
    return pellucid.load("smollm2", quantize="stored")


PROMPTS = ["What is the capital of France?", "Write a sentence about the sea.", "Count from one to five."]


@torch.no_grad()
def test_a_real_model_says_what_it_says_through_pytorch(real: tuple[Decoder, Tokenizer]) -> None:
    """Rounding to bytes moves a log-probability by some hundredths, here and there by more (over a thousand tokens of
    text KL is 0.0035, and perplexity 0.3 % higher). So the tokens are the same but where two are nearly as likely; from
    there on the texts may differ, and each is judged by the other's probabilities."""
    model, tokenizer = real
    engine = Engine(model, tokenizer, num_blocks=64)
    assert engine.runner.why_not is None
    for prompt in PROMPTS:
        ids = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True).ids
        engine.add(ids, SamplingParams(temperature=0, max_tokens=24, logprobs=1))
        events = [event for _ in iter(lambda: engine.busy, False) for event in engine.step()]
        answer = [event.token_id for event in events]
        after = model(torch.tensor([ids + answer]))[0, len(ids) - 1 : -1].log_softmax(-1)
        theirs = after.gather(1, torch.tensor(answer)[:, None])[:, 0]
        ours = torch.tensor([event.logprob for event in events])
        assert (ours - theirs).abs().max() < 0.6 and (ours - theirs).abs().mean() < 0.1
        assert (after.max(-1).values - theirs).max() < 0.3  # the token is PyTorch's own, or as good as that
