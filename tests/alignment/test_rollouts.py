"""Promise A1: on policy, what the engine says of a token it drew is what training says of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pellucid.alignment.drawn_rows import find_nuclei, lay, log_probs_of
from pellucid.alignment.rollouts import Rollout, Rollouts, effective_weights
from pellucid.errors import InputError
from pellucid.inference.params import SamplingParams
from pellucid.models.adapters import AdapterConfig, adapter_parameters, add_adapter
from pellucid.models.config import ModelConfig
from pellucid.models.decoder import Decoder
from pellucid.tokenizer.tokenizer import Tokenizer
from tests.checkpoints.tiny import CONFIGS, SIZES, random_model, tiny_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

TEMPERATURES, TOP_PS = (0.6, 1.0, 1.3), (1.0, 0.9, 0.4)
PROMPTS = [[1, 2, 3, 4], [5, 6, 7], [9] * 12]
CPU = torch.device("cpu")


def moved(model: Decoder, seed: int = 7) -> Decoder:
    """Every weight that is trained a little elsewhere, as after a step."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
    return model


def largest_ratio_error(
    model: Decoder, tokenizer: Tokenizer, found: list[Rollout], temperature: float, context: int
) -> float:
    """|r - 1| at most, r by the training forward, over packed rows."""
    laid = lay(found, context, CPU)
    drawable = min(model.config.vocab_size, tokenizer.vocab_size)
    with torch.no_grad():
        laid = find_nuclei(model, laid, drawable, temperature, together=2)
        log_probs = log_probs_of(model, laid.rows, drawable, temperature)[0]
    assert len(log_probs) == sum(len(one.tokens) for one in found)
    return float(((log_probs - laid.rows.old[laid.rows.learnt]).exp() - 1).abs().max())


@pytest.mark.parametrize("top_p", TOP_PS)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_ratio_is_one(temperature: float, top_p: float) -> None:
    """Weights of the size of an initialisation's: logits of a few units, whose float32 error is below 1e-6 each, so
    that the ratio's is below 1e-5 at the lowest temperature."""
    model, tokenizer = Decoder(ModelConfig(**SIZES), seed=3), tiny_tokenizer()
    rollouts = Rollouts(model, tokenizer, 48)
    moved(model)
    rollouts.sync()
    params = SamplingParams(temperature=temperature, top_p=top_p, max_tokens=24, n=4)
    found = rollouts.generate(PROMPTS, params, [1, 2, 3])
    assert largest_ratio_error(model, tokenizer, found, temperature, 64) < 1e-5


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "gemma3", "gpt2"])
def test_families(family: str) -> None:
    """Biases and offsets, of which the native step has copies; weights ten times as large, and the bound with them."""
    model, tokenizer = random_model(CONFIGS[family]).requires_grad_(True), tiny_tokenizer()
    rollouts = Rollouts(model, tokenizer, 48)
    moved(model)
    rollouts.sync()
    found = rollouts.generate(PROMPTS, SamplingParams(top_p=0.9, max_tokens=24, n=4), [1, 2, 3])
    assert largest_ratio_error(model, tokenizer, found, 1.0, 64) < 1e-4


def test_without_the_native_step() -> None:
    model, tokenizer = Decoder(ModelConfig(**SIZES), seed=3), tiny_tokenizer()
    rollouts = Rollouts(model, tokenizer, 48, native=False)
    moved(model)
    rollouts.sync()
    found = rollouts.generate(PROMPTS, SamplingParams(temperature=0.6, top_p=0.9, max_tokens=24, n=4), [1, 2, 3])
    assert largest_ratio_error(model, tokenizer, found, 0.6, 64) < 1e-5


@pytest.mark.parametrize("dora", [False, True])
def test_with_an_adapter(dora: bool) -> None:
    """The copy is plain, the adapter's change in its weights; a sum in another order differs in the last bits."""
    model, tokenizer = Decoder(ModelConfig(**SIZES, query_bias=True), seed=3), tiny_tokenizer()
    add_adapter(model, AdapterConfig(rank=4, targets=("q_proj", "down_proj"), dora=dora))
    rollouts = Rollouts(model, tokenizer, 48)
    before = dict(effective_weights(model))
    moved(model)
    after = dict(effective_weights(model))
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        f"blocks.{layer}.{part}.weight" for layer in range(4) for part in ("attention.query", "feed_forward.down")
    }
    assert next(iter(adapter_parameters(model, "default"))).requires_grad
    rollouts.sync()
    found = rollouts.generate(PROMPTS, SamplingParams(temperature=0.6, top_p=0.9, max_tokens=24, n=4), [1, 2, 3])
    assert largest_ratio_error(model, tokenizer, found, 0.6, 64) < 1e-5


def test_it_takes_the_weights_over_and_repeats() -> None:
    model, tokenizer = Decoder(ModelConfig(**SIZES), seed=3), tiny_tokenizer()
    rollouts = Rollouts(model, tokenizer, 48)
    params = SamplingParams(max_tokens=12, n=2)

    def drawn() -> list[Rollout]:
        return rollouts.generate(PROMPTS, params, [1, 2, 3])

    first = drawn()
    assert first == drawn()
    assert [one.prompt for one in first] == [tuple(prompt) for prompt in PROMPTS for _ in range(2)]
    assert first[0].tokens != first[1].tokens
    alone = rollouts.generate(PROMPTS[1:2], params, [2])
    assert alone == first[2:4]
    moved(model)
    assert drawn() == first  # until it is told
    rollouts.sync()
    assert drawn() != first
    assert drawn() == Rollouts(model, tokenizer, 48).generate(PROMPTS, params, [1, 2, 3])


def test_a_prompt_without_room() -> None:
    rollouts = Rollouts(Decoder(ModelConfig(**SIZES)), tiny_tokenizer(), 64)
    with pytest.raises(InputError, match="the context holds 64"):
        rollouts.generate([[1] * 64], SamplingParams(), [1])
    assert not rollouts.engine.busy


def test_rows() -> None:
    """Each drawn token is predicted at the place before it, and packed rows compute what each answer alone does."""
    model, tokenizer = Decoder(ModelConfig(**SIZES), seed=3), tiny_tokenizer()
    found = Rollouts(model, tokenizer, 48).generate(PROMPTS, SamplingParams(max_tokens=9, n=2), [1, 2, 3])
    laid = lay(found, 40, CPU)
    assert laid.rows.tokens.shape[1] <= 40 and len(laid.rows.tokens) < len(found)
    tokens = laid.by_answer(laid.rows.targets)
    for number, one in enumerate(found):
        assert tokens[number, : len(one.tokens)].tolist() == list(one.tokens)
        assert not laid.mask[number, len(one.tokens) :].any()
    back = laid.by_place(laid.by_answer(laid.rows.old))
    assert torch.equal(back, laid.rows.old)
    together = torch.zeros(laid.rows.tokens.shape)
    with torch.no_grad():
        together[laid.rows.learnt] = log_probs_of(model, laid.rows, tokenizer.vocab_size, 1.0)[0]
        for number, one in enumerate(found):
            logits = model(torch.tensor([one.prompt + one.tokens]))[0, len(one.prompt) - 1 : -1, : tokenizer.vocab_size]
            alone = logits.log_softmax(-1).gather(-1, torch.tensor(one.tokens)[:, None])[:, 0]
            torch.testing.assert_close(laid.by_answer(together)[number, : len(one.tokens)], alone, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_smollm2(smollm2: tuple[Decoder, Tokenizer]) -> None:
    """The two differ by rounding alone: logits of 36 that are sums of 576 products, over a temperature of 0.6, are 3e-5
    from those in float64 (measured; the engine's, 1.3e-5). What is learnt from is a ratio of training's forwards."""
    model, tokenizer = smollm2
    rollouts = Rollouts(model, tokenizer, 64)
    asked: list[Any] = [{"role": "user", "content": "Name three towns."}]
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True).ids
    for temperature, top_p in ((0.6, 1.0), (1.0, 0.9), (1.3, 1.0)):
        params = SamplingParams(temperature=temperature, top_p=top_p, max_tokens=16, n=2)
        found = rollouts.generate([prompt], params, [1])
        assert largest_ratio_error(model, tokenizer, found, temperature, 128) < 1e-4, (temperature, top_p)
