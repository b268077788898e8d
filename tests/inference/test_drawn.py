"""What the sampler says of a draw: the chance that the token had, and among how many it was drawn."""

from __future__ import annotations

import pytest
import torch

from pellucid.inference.engine import Engine
from pellucid.inference.params import SamplingParams
from pellucid.inference.rows import new_row
from pellucid.inference.sampling import Sampler
from tests.checkpoints.tiny import CONFIGS, random_model, tiny_tokenizer

V = 1000
FILTERS = [
    {},
    {"temperature": 0.6},
    {"temperature": 1.3, "top_p": 0.9},
    {"top_p": 0.3},
    {"temperature": 2.0, "top_p": 0.99},
    {"top_k": 5},
    {"top_k": 50, "top_p": 0.8},
    {"min_p": 0.05},
    {"typical_p": 0.7},
    {"temperature": 0.0},
]


def distribution(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """(V,) in float64, filter after filter, on sorted chances."""
    if params.temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(), len(logits)).double()
    chances = (logits.double() / params.temperature).softmax(-1)
    if params.top_k:
        chances = chances.where(chances >= chances.topk(params.top_k).values[-1], 0.0)
    if params.top_p < 1:
        chances = chances / chances.sum()
        ordered = chances.sort(descending=True).values
        border = ordered[(ordered.cumsum(-1) - ordered < params.top_p).sum() - 1]
        chances = chances.where(chances >= border, 0.0)
    if params.min_p:
        chances = chances.where(chances >= params.min_p * chances.max(), 0.0)
    if params.typical_p < 1:
        far = (-chances.log() - torch.special.entr(chances).sum()).abs()
        ordered = chances[far.argsort()]
        border = far.sort().values[(ordered.cumsum(-1) - ordered < params.typical_p).sum() - 1]
        chances = chances.where(far <= border, 0.0)
    return chances / chances.sum()


@pytest.mark.parametrize("given", FILTERS)
def test_chance_and_number(given: dict[str, float]) -> None:
    """Rounding: a chance is a float32 quotient of sums of V float32 exponentials, each within a few ulp."""
    logits = 3 * torch.randn(8, V, generator=torch.Generator().manual_seed(1))
    params = SamplingParams(**given, seed=5)
    rows = [new_row(params.with_({"seed": seed}), [1], V) for seed in range(8)]
    drawn = Sampler(V).draw(logits, rows)
    for row in range(8):
        exact = distribution(logits[row], params)
        assert float(drawn.chances[row]) == pytest.approx(float(exact[drawn.tokens[row]]), rel=1e-5)
        assert int(drawn.among[row]) == int((exact > 0).sum())


def test_rows_that_draw_in_different_ways() -> None:
    logits = torch.randn(len(FILTERS), V, generator=torch.Generator().manual_seed(2))
    asked = [SamplingParams(**given, seed=5) for given in FILTERS]
    together = Sampler(V).draw(logits, [new_row(one, [1], V) for one in asked])
    for place, one in enumerate(asked):
        alone = Sampler(V).draw(logits[place : place + 1], [new_row(one, [1], V)])
        assert [float(part[place]) for part in together] == [float(part[0]) for part in alone]


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "gpt2"])
def test_an_engine_whose_weights_change(family: str) -> None:
    """It goes on as an engine that is new: biases and offsets, of which the native step has copies, and the cache."""
    model, tokenizer = random_model(CONFIGS[family]), tiny_tokenizer()
    prompt, params = list(range(1, 40)), SamplingParams(temperature=0.9, top_p=0.9, max_tokens=8, seed=3, logprobs=0)

    def answers(engine: Engine) -> list[tuple[int, float | None, int | None]]:
        engine.add(prompt, params)
        found = []
        while engine.busy:
            found += [(event.token_id, event.logprob, event.among) for event in engine.step()]
        return found

    engine = Engine(model, tokenizer, drawn_logprobs=True)
    before = answers(engine)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    engine.weights_changed()
    assert engine.scheduler.blocks.cached == 0
    after = answers(engine)
    assert after != before
    assert after == answers(Engine(model, tokenizer, drawn_logprobs=True))
    assert all(of is not None and 1 <= of <= tokenizer.vocab_size for _, _, of in after)
