"""Promise I15: a batch over the base and two adapters equals each alone, and the prefix cache knows who wrote it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pellucid.errors import InputError
from pellucid.inference.engine import Engine
from pellucid.inference.native_step import why_not_native
from pellucid.inference.params import SamplingParams
from pellucid.inference.runner import Runner
from pellucid.layers.nf4 import NF4Linear, to_nf4
from pellucid.models import adapters as models_adapters
from pellucid.models.adapters import (
    AdapterConfig,
    active_adapter,
    adapter_on,
    adapter_parameters,
    add_adapter,
    use_adapter,
)
from pellucid.models.decoder import Decoder
from pellucid.models.quantised import put_layer
from tests.checkpoints.tiny import CONFIGS, random_model, tiny_tokenizer
from tests.inference.test_runner import run_all, texts
from tests.inference.tiny import ARCHITECTURES, tiny_model
from tests.models.few_bits import formats_of, quantise

pytestmark = pytest.mark.usefixtures("one_thread")

MODELS = CONFIGS | {name: tiny_model(name).config for name in ARCHITECTURES if name not in CONFIGS}
NAMES = (None, "poet", "clerk")


def adapted_model(config: str, dtype: torch.dtype = torch.float32, form: str | None = None) -> Decoder:
    """A model with two adapters that change it much, and not the same layers; none is active. form: of its blocks."""
    model = random_model(MODELS[config]).to(dtype)
    if form is not None:
        quantise(model, form)
    some = ("c_attn", "mlp.c_proj") if config == "gpt2" else ("query", "value", "down")
    add_adapter(model, AdapterConfig(rank=4, alpha=8), "poet")
    add_adapter(model, AdapterConfig(rank=20, alpha=5, rslora=True, dora=True, targets=some), "clerk")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name in ("poet", "clerk"):
            for parameter in adapter_parameters(model, name):
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    use_adapter(model, None)
    return model.eval()


def whole(model: Decoder, tokens: list[int], adapter: str | None) -> Tensor:
    """The logits at every place, by one forward with an adapter."""
    use_adapter(model, adapter)
    logits = model(torch.tensor([tokens]))[0]
    use_adapter(model, None)
    return logits


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("config", MODELS)
@torch.no_grad()
def test_a_step_of_several_adapters_gives_the_logits_of_a_forward_with_each(config: str, native: bool) -> None:
    """float32, logits up to 13: both ways are up to 1e-4 away from what float64 gives."""
    model = adapted_model(config)
    sequences = texts(model, 6)
    adapters = [NAMES[number % 3] for number in range(6)]
    expected = [whole(model, *each) for each in zip(sequences, adapters, strict=True)]
    assert (expected[0] - whole(model, sequences[0], "poet")).abs().max() > 0.1
    runner = Runner(model, 32, native=native)
    assert (runner.why_not is None) == (native and config != "sinusoidal")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models_adapters, "adapted", lambda _: pytest.fail("the model is searched in every step"))
        found = run_all(runner, sequences, 1, 5, adapters)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=3e-4)
    assert active_adapter(model) is None


@pytest.mark.parametrize("form", ["Q8_0", "Q4_1"])
@torch.no_grad()
def test_adapters_beside_weights_in_blocks(form: str) -> None:
    """What a layer reads is rounded to bytes, for its own weights alone: to 1 / 254 of the largest of 32 numbers."""
    model = adapted_model("llama", form=form)
    assert formats_of(model) == {form}
    sequences = texts(model, 3)
    runner = Runner(model, 32)
    mixed = run_all(runner, sequences, 1, 5, NAMES)
    for name, tokens, ours in zip(NAMES, sequences, mixed, strict=True):
        theirs = whole(model, tokens, name)
        assert (ours - theirs).square().mean().sqrt() < 0.05 * theirs.std()
        assert torch.equal(ours, run_all(Runner(model, 32), [tokens], 2, 3, [name])[0])


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def model(request: pytest.FixtureRequest, one_thread: None) -> Decoder:
    model = adapted_model("llama", request.param)
    if reason := why_not_native(model):
        pytest.skip(f"no native step here: {reason}")
    return model


Asking = tuple[list[int], SamplingParams, str | None]

PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.9]),
    max_tokens=st.integers(1, 10),
    n=st.sampled_from([1, 1, 2]),
    logprobs=st.sampled_from([None, 2]),
    prompt_logprobs=st.sampled_from([None, None, 0]),
    seed=st.integers(0, 9),
) | st.builds(SamplingParams, beam_width=st.just(2), max_tokens=st.integers(1, 6), seed=st.just(0))
# Prompts that begin alike, so that the prefix cache has something to confuse.
PROMPTS = st.builds(
    lambda first, count, last: [first] * count + [last],
    st.sampled_from([7, 65]),
    st.integers(0, 36),
    st.integers(0, 255),
)


Scores = dict[int, list[tuple[object, ...]]]  # by the index of the answer


def answers(engine: Engine, asked: Sequence[Asking]) -> list[Scores]:
    """All that is computed of each request, exactly; half of them come while the others are under way."""
    found: dict[int, Scores] = defaultdict(lambda: defaultdict(list))
    ids: list[int] = []

    def step() -> None:
        for event in engine.step():
            token = (event.token_id, event.logprob, event.alternatives, event.prompt_logprobs, event.finish_reason)
            found[event.id][event.index].append(token)

    for part in (asked[: len(asked) // 2], asked[len(asked) // 2 :]):
        ids += [engine.add(prompt, params, adapter=adapter) for prompt, params, adapter in part]
        for _ in range(3):
            step()
    while engine.busy:
        step()
    return [found[number] for number in ids]


@settings(max_examples=25)
@given(
    asked=st.lists(st.tuples(PROMPTS, PARAMS, st.sampled_from(NAMES)), min_size=2, max_size=7),
    blocks=st.sampled_from([9, 40]), int8_cache=st.booleans(), guesses=st.sampled_from([0, 3]),
)  # fmt: skip
def test_whatever_is_under_way_an_answer_is_the_one_that_it_is_alone(
    model: Decoder, asked: list[Asking], blocks: int, int8_cache: bool, guesses: int
) -> None:
    """Bit for bit, with the prefix cache, pre-emption, several answers, beams, guesses and a cache of bytes."""
    options = {"int8_cache": int8_cache, "deterministic": True, "max_tokens_per_step": 24, "max_sequences": 8}
    together = Engine(model, tiny_tokenizer(), num_blocks=blocks, guesses=guesses, **options)
    alone = [answers(Engine(model, tiny_tokenizer(), num_blocks=blocks, **options), [one])[0] for one in asked]
    assert answers(together, asked) == alone
    assert together.stats()["blocks_used"] == 0


def test_what_one_adapter_has_read_another_does_not_find(model: Decoder) -> None:
    engine = Engine(model, tiny_tokenizer(), num_blocks=40)
    prompt, greedy = list(range(40)), SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    first = [answers(engine, [(prompt, greedy, name)])[0] for name in NAMES]
    assert engine.stats()["prefix_hits"] == 0 and len({str(one) for one in first}) == 3
    again = [answers(engine, [(prompt, greedy, name)])[0] for name in NAMES]
    assert again == first and engine.stats()["prefix_hits"] == 3 * 32


def test_without_a_name_the_active_adapter_answers(model: Decoder) -> None:
    greedy = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=0)
    with adapter_on(model, "clerk"):
        engine = Engine(model, tiny_tokenizer(), num_blocks=8)
    plain = Engine(model, tiny_tokenizer(), num_blocks=8)
    assert answers(engine, [([1, 2], greedy, None)]) == answers(plain, [([1, 2], greedy, "clerk")])
    assert answers(engine, [([1, 2], greedy, None)]) != answers(plain, [([1, 2], greedy, None)])


@pytest.mark.parametrize("model", [torch.float32], indirect=True, ids=["float32"])
def test_a_draft_model_guesses_for_every_adapter(model: Decoder) -> None:
    """A wrong guess changes nothing, and the base is a good guesser for an adapter that changes it little."""
    greedy = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    asked: list[Asking] = [([7, number], greedy, name) for number in range(2) for name in NAMES]
    expected = answers(Engine(model, tiny_tokenizer(), num_blocks=40), asked)
    draft = random_model(CONFIGS["llama"]), tiny_tokenizer()
    engine = Engine(model, tiny_tokenizer(), num_blocks=40, draft=draft)
    assert answers(engine, asked) == expected
    assert engine.stats()["guesses_taken"] > 0


def test_an_adapter_that_is_not_there_is_refused(model: Decoder) -> None:
    engine = Engine(model, tiny_tokenizer(), num_blocks=8)
    with pytest.raises(InputError, match=r"no adapter 'poets' \(did you mean 'poet'\?\): there are poet, clerk"):
        engine.add([1], SamplingParams(), adapter="poets")
    assert not engine.busy
    with pytest.raises(InputError, match="there is no adapter 'poet': the model has none"):
        Engine(random_model(CONFIGS["llama"]), tiny_tokenizer(), num_blocks=8).add(
            [1], SamplingParams(), adapter="poet"
        )


def test_weights_in_nf4_take_the_other_way() -> None:
    model = adapted_model("llama")
    layer = model.get_submodule("blocks.0.attention.query").base
    put_layer(model, "blocks.0.attention.query.base", NF4Linear(to_nf4(layer.weight)))
    assert why_not_native(model) == "its weights are NF4"
    asked: list[Asking] = [
        ([7, 8, 9], SamplingParams(temperature=0, max_tokens=3, ignore_eos=True), name) for name in NAMES
    ]
    expected = [answers(Engine(model, tiny_tokenizer(), num_blocks=8), [one])[0] for one in asked]
    assert answers(Engine(model, tiny_tokenizer(), num_blocks=8), asked) == expected
