"""A draft model changes no answer, leaves nothing in its cache, and is left off where it is slower."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch

from pellucid.errors import InputError
from pellucid.inference.draft_model import DraftModel, check_same_vocabulary
from pellucid.inference.drafts import Pace
from pellucid.inference.engine import Engine
from pellucid.inference.generate import generate
from pellucid.inference.params import SamplingParams
from pellucid.inference.step import Step
from pellucid.models.adapters import use_adapter
from pellucid.models.config import ModelConfig
from pellucid.models.decoder import Decoder
from pellucid.tokenizer.tokenizer import Tokenizer
from tests.checkpoints.tiny import CONFIGS, SIZES, random_model, tiny_tokenizer
from tests.inference.test_adapters import adapted_model
from tests.inference.test_engine import ids_of, prompts, run

pytestmark = pytest.mark.usefixtures("one_thread")

MODEL = random_model(CONFIGS["llama"])


def smaller(model: Decoder, layers: int) -> Decoder:
    """The first layers of a model: it says nearly the same."""
    config = ModelConfig(**{**model.config.model_dump(exclude_unset=True), "num_layers": layers})
    draft = Decoder(config).eval()
    draft.load_state_dict({name: value for name, value in model.state_dict().items() if name in draft.state_dict()})
    return draft


DRAFTS = {
    "itself": MODEL,
    "three of four layers": smaller(MODEL, 3),
    "a random one": random_model(ModelConfig(**{**SIZES, "num_layers": 1, "max_positions": 48})),
    "no numbers": smaller(MODEL, 1),
}
DRAFTS["no numbers"].embedding.weight.data.fill_(float("nan"))


def engine(draft: Decoder, **options: Any) -> Engine:
    options = {"num_blocks": 64, "max_tokens_per_step": 24, "max_sequences": 8} | options
    return Engine(MODEL, tiny_tokenizer(), draft=(draft, tiny_tokenizer()), **options)


def drafter(one: Engine) -> DraftModel:
    assert one.speculation is not None
    found = one.speculation.drafter
    assert isinstance(found, DraftModel)
    return found


def asked(temperature: float) -> list[tuple[list[int], SamplingParams]]:
    """Some of them forbid or push away tokens, which the draft does not know of."""
    more: list[dict[str, Any]] = [
        {},
        {"top_p": 0.8},
        {"repetition_penalty": 1.3},
        {"n": 3},
        {"top_k": 5},
        {"min_tokens": 9},
    ]
    return [
        (prompt, SamplingParams(temperature=temperature, seed=n, max_tokens=16, **more[n]))
        for n, prompt in enumerate(prompts(6))
    ]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("name", DRAFTS)
def test_answers_are_the_same_token_for_token(name: str, temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pace, "choose", lambda self, answers: True)
    plain = Engine(MODEL, tiny_tokenizer(), num_blocks=64, max_tokens_per_step=24, max_sequences=8)
    expected = run(plain, asked(temperature))
    some: list[dict[str, Any]] = [{}, {"num_blocks": 7}]
    if name == "three of four layers":
        some += [{"max_tokens_per_step": 9}, {"guesses": 1}, {"native": False}]
    for options in some:
        one = engine(DRAFTS[name], **options)
        found = run(one, asked(temperature), late=3)
        for number, answers in expected.items():
            for index, events in answers.items():
                assert ids_of(found[number][index]) == ids_of(events)
                assert [event.text for event in found[number][index]] == [event.text for event in events]
        assert drafter(one).blocks.used == 0 and not drafter(one)._followers
        stats = one.stats()
        if name == "no numbers":
            assert stats["drafts"] == 0
        else:
            assert 0 <= stats["guesses_taken"] <= stats["tokens_guessed"]
            assert stats["accepted_length"] == 1 + stats["guesses_taken"] / stats["drafts"]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_draft_that_says_the_same_is_always_right(temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same random numbers too. The prompt gives the first token, and four guesses and one more each step."""
    monkeypatch.setattr(Pace, "choose", lambda self, answers: True)
    one = engine(DRAFTS["itself"])
    params = SamplingParams(temperature=temperature, top_p=0.95, seed=1, max_tokens=21, ignore_eos=True)
    run(one, [([3, 1, 4], params)])
    assert one.steps == 1 + 4
    assert one.stats()["guesses_taken"] == one.stats()["tokens_guessed"] == 16 and one.stats()["accepted_length"] == 5


@pytest.mark.parametrize("native", [True, False])
def test_a_draft_guesses_with_its_adapter(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pace, "choose", lambda self, answers: True)
    model = adapted_model("llama")
    use_adapter(model, "poet")
    one = Engine(model, tiny_tokenizer(), num_blocks=64, native=native, draft=(model, tiny_tokenizer()))
    run(one, [([3, 1, 4], SamplingParams(temperature=0, max_tokens=21, ignore_eos=True))])
    assert one.stats()["guesses_taken"] == one.stats()["tokens_guessed"] == 16


def test_what_is_aborted_is_free_there_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pace, "choose", lambda self, answers: True)
    one = engine(DRAFTS["itself"])
    first = one.add([5] * 20, SamplingParams(temperature=0, max_tokens=30, ignore_eos=True))
    second = one.add([6] * 20, SamplingParams(temperature=0, max_tokens=30, ignore_eos=True))
    for _ in range(5):
        one.step()
    used = drafter(one).blocks.used
    one.abort(first)
    assert 0 < drafter(one).blocks.used < used
    one.abort(second)
    assert drafter(one).blocks.used == 0


def test_a_prompt_is_read_once_for_all_its_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pace, "choose", lambda self, answers: True)
    one = engine(DRAFTS["itself"], num_blocks=200, max_tokens_per_step=64)
    read: list[int] = []
    plain = drafter(one).runner.run

    def counted(step: Step) -> torch.Tensor:
        read.append(sum(len(chunk.tokens) for chunk in step.chunks))
        return plain(step)

    monkeypatch.setattr(drafter(one).runner, "run", counted)
    params = SamplingParams(temperature=0.5, max_tokens=6, ignore_eos=True, seed=0)
    run(one, [([7] * 40, params)])
    first = read[0]
    read.clear()
    run(one, [([7] * 40, params.with_({"n": 2}))])
    assert first == 41 and read[0] <= 2 * (41 - 32)


def test_the_distribution_is_the_models() -> None:
    """Two tokens after a prompt, over a vocabulary of four: chi-square against the exact probabilities."""
    kept = (4, 5, 6, 7)
    bias = {token: -100.0 for token in range(266) if token not in kept}
    base = SamplingParams(max_tokens=3, ignore_eos=True, logit_bias=bias, temperature=1.2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pace, "choose", lambda self, answers: True)
        one = engine(DRAFTS["three of four layers"], num_blocks=400, max_sequences=24)
        count = 1500
        found = run(one, [([9, 8, 7], base.with_({"seed": 1000 + n})) for n in range(count)])
    assert one.stats()["guesses_taken"] > 0
    seen = Counter(tuple(ids_of(answers[0])[:2]) for answers in found.values())
    with torch.no_grad():
        heat = 1.2
        first = (MODEL(torch.tensor([[9, 8, 7]]))[0, -1, list(kept)] / heat).softmax(-1)
        texts = torch.tensor([[9, 8, 7, token] for token in kept])
        second = (MODEL(texts)[:, -1, list(kept)] / heat).softmax(-1)  # (4, 4)
    exact = {
        (a, b): float(first[i] * second[i, j]) for i, a in enumerate(kept) for j, b in enumerate(kept)
    }  # fmt: skip
    assert set(seen) <= set(exact)
    chi = sum((seen[pair] - count * chance) ** 2 / (count * chance) for pair, chance in exact.items())
    assert chi < 37.7  # of 15 degrees of freedom, exceeded once in a thousand times


def test_a_draft_that_is_slower_is_left_off(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("pellucid.inference.engine.time.perf_counter", lambda: clock[0])
    one = engine(DRAFTS["a random one"])
    for each, seconds in ((one.runner, 1.0), (drafter(one).runner, 0.5)):

        def timed(step: Any, wrapped: Any = each.run, seconds: float = seconds) -> torch.Tensor:
            clock[0] += seconds
            return wrapped(step)

        monkeypatch.setattr(each, "run", timed)
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    run(one, [([n, 3], params) for n in range(1, 5)])
    stats = one.stats()
    assert 0 < stats["drafts"] <= 4 * 3 and stats["guess_gain"] < 1
    assert clock[0] < one.steps + 2 * 3


def test_another_vocabulary_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    definition = {**tokenizer.definition, "added_tokens": []}
    with pytest.raises(InputError, match=r"another vocabulary: token \d+ is"):
        check_same_vocabulary(tokenizer, Tokenizer(definition))
    with pytest.raises(InputError, match="another vocabulary"):
        Engine(MODEL, tokenizer, num_blocks=8, draft=(MODEL, Tokenizer(definition)))
    few = random_model(ModelConfig(**{**SIZES, "vocab_size": 200}))
    with pytest.raises(InputError, match="vocabulary ends at 199"):
        Engine(MODEL, tokenizer, num_blocks=8, draft=(few, tokenizer))


def test_answers_are_those_of_the_reference_too() -> None:
    params = SamplingParams(temperature=0, max_tokens=20)
    expected = generate(MODEL, tiny_tokenizer(), prompts(5), params)
    found = run(engine(DRAFTS["three of four layers"]), [(prompt, params) for prompt in prompts(5)])
    assert [ids_of(found[n][0]) for n in range(5)] == [one.token_ids for one in expected]
    assert not math.isnan(expected[0].seconds)
