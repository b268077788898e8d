"""The filters against transformers' processors, the sampler against its promises."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from pellucid.errors import InputError, PellucidError
from pellucid.inference import sampling
from pellucid.inference.sampling import Sampler, SamplingParams

VOCAB = 97
seeds = st.integers(0, 2**31)


def random_logits(seed: int, rows: int = 3, size: int = VOCAB) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 4 * torch.randn(rows, size, generator=generator)


def column(value: float, rows: int = 3) -> torch.Tensor:
    return torch.full((rows,), value)


@given(seeds, st.floats(0.05, 20))
def test_temperature_is_transformers_up_to_a_shift(seed: int, temperature: float) -> None:
    logits = random_logits(seed)
    theirs = TemperatureLogitsWarper(temperature)(None, logits)
    ours = sampling.apply_temperature(logits, column(temperature))
    torch.testing.assert_close(ours.log_softmax(-1), theirs.log_softmax(-1), rtol=1e-4, atol=1e-4)


@given(seeds, st.integers(1, VOCAB + 20))
def test_top_k_is_transformers(seed: int, k: int) -> None:
    logits = random_logits(seed)
    theirs = TopKLogitsWarper(k)(None, logits)
    assert torch.equal(sampling.keep_top_k(logits, torch.tensor([k] * 3)), theirs)


@given(seeds, st.floats(0.001, 0.999))
def test_top_p_is_transformers(seed: int, p: float) -> None:
    logits = random_logits(seed)
    theirs = TopPLogitsWarper(p)(None, logits)
    ours = sampling.keep_top_p(logits, column(p))
    chances, order = logits.double().softmax(-1).sort(-1, descending=True)
    before = torch.zeros_like(chances).scatter(-1, order, chances.cumsum(-1) - chances)
    decided = (before - p).abs() > 1e-5  # a token that stands on the border to within rounding may fall either way
    assert torch.equal(ours[decided], theirs[decided])


@given(seeds, st.floats(0.001, 1.0))
def test_min_p_is_transformers(seed: int, minimum: float) -> None:
    logits = random_logits(seed)
    theirs = MinPLogitsWarper(minimum)(None, logits)
    ours = sampling.keep_min_p(logits, column(minimum))
    relative = logits.double().softmax(-1) / logits.double().softmax(-1).amax(-1, keepdim=True)
    decided = (relative - minimum).abs() > 1e-6
    assert torch.equal(ours[decided], theirs[decided])


@given(seeds, st.floats(0.1, 10))
def test_repetition_penalty_is_transformers(seed: int, penalty: float) -> None:
    logits = random_logits(seed)
    history = torch.randint(VOCAB, (3, 20), generator=torch.Generator().manual_seed(seed))
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(history, logits)
    seen = torch.zeros(3, VOCAB, dtype=torch.bool).scatter(-1, history, True)
    torch.testing.assert_close(sampling.penalise_repetition(logits, seen, column(penalty)), theirs)


@given(seeds, st.floats(0.3, 3), st.integers(5, 60), st.floats(0.3, 0.95), st.floats(0.01, 0.3))
def test_the_filters_come_in_the_order_of_transformers(
    seed: int, temperature: float, k: int, p: float, minimum: float
) -> None:
    logits = random_logits(seed)
    theirs = logits
    for warper in (
        TemperatureLogitsWarper(temperature),
        TopKLogitsWarper(k),
        TopPLogitsWarper(p),
        MinPLogitsWarper(minimum),
    ):
        theirs = warper(None, theirs)
    params = SamplingParams(temperature=temperature, top_k=k, top_p=p, min_p=minimum)
    ours = Sampler([params] * 3, [[]] * 3, VOCAB)._filtered(logits)
    kept, expected = ours.isfinite().sum(-1), theirs.isfinite().sum(-1)
    assert ((kept - expected).abs() <= 1).all()  # a token on the very border may fall either way
    same = kept == expected
    torch.testing.assert_close(ours[same].softmax(-1), theirs[same].softmax(-1), rtol=1e-3, atol=1e-5)


def test_presence_and_frequency_by_hand() -> None:
    counts = torch.tensor([[0, 1, 3]])
    ours = sampling.penalise_presence(torch.zeros(1, 3), counts, torch.tensor([0.5]), torch.tensor([0.25]))
    assert ours.tolist() == [[0.0, -0.75, -1.25]]


def test_a_nucleus_larger_than_the_first_guess() -> None:
    logits = torch.zeros(1, 4 * sampling.NUCLEUS_GUESS)
    logits[0, : 3 * sampling.NUCLEUS_GUESS] = torch.linspace(2, 1, 3 * sampling.NUCLEUS_GUESS)
    theirs = TopPLogitsWarper(0.7)(None, logits)
    assert torch.equal(sampling.keep_top_p(logits, torch.tensor([0.7])), theirs)


@given(seeds)
def test_each_row_is_filtered_by_its_own_number(seed: int) -> None:
    logits = random_logits(seed)
    cases = [
        (sampling.keep_top_k, torch.tensor([0, 3, 50])),
        (sampling.keep_top_p, torch.tensor([1.0, 0.2, 0.9])),
        (sampling.keep_min_p, torch.tensor([0.0, 0.5, 0.01])),
        (sampling.apply_temperature, torch.tensor([0.3, 1.0, 7.0])),
    ]
    for function, values in cases:
        together = function(logits, values)
        for row in range(3):
            assert torch.equal(together[row], function(logits[row : row + 1], values[row : row + 1])[0])


@given(seeds, st.floats(0, 1, exclude_max=True))
def test_draw_inverts_the_cumulative_distribution(seed: int, uniform: float) -> None:
    logits = random_logits(seed, rows=1)
    logits[0, ::2] = -torch.inf
    token = sampling.draw(logits, torch.tensor([uniform], dtype=torch.float64)).item()
    chances = logits.double().softmax(-1)[0]
    assert chances[token] > 0
    assert chances[:token].sum() <= uniform + 1e-5
    assert chances[: token + 1].sum() >= uniform - 1e-5


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([0.5, 0.25, 0.125, 0.125]).log()[None]
    sampler = Sampler([SamplingParams(seed=1)], [[]], 4)
    counts = torch.bincount(torch.tensor([sampler(logits).item() for _ in range(4000)]), minlength=4)
    # three standard deviations of a binomial count
    for count, chance in zip(counts.tolist(), [0.5, 0.25, 0.125, 0.125], strict=True):
        assert abs(count - 4000 * chance) < 3 * math.sqrt(4000 * chance * (1 - chance))


extreme = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 1e-300, 1e-40, 1e-30, 1e-6, 1.0, 1e6, 1e30]),
        "top_p": st.sampled_from([1e-300, 1e-6, 0.5, 1.0]),
        "top_k": st.sampled_from([0, 1, 2, 2**31 - 1]),
        "min_p": st.sampled_from([0.0, 1e-300, 0.5, 1.0]),
        "repetition_penalty": st.sampled_from([1e-6, 1.0, 1e6]),
        "presence_penalty": st.sampled_from([-1e6, 0.0, 1e6]),
        "frequency_penalty": st.sampled_from([-1e6, 0.0, 1e6]),
    }
)


@given(seeds, st.lists(extreme, min_size=1, max_size=4), st.sampled_from([1e-30, 1.0, 1e4, 1e38]))
def test_extreme_values_give_a_token_that_the_model_allows(seed: int, rows: list[dict], scale: float) -> None:
    logits = (scale * random_logits(seed, len(rows))).clamp(-3e38, 3e38)
    banned = torch.rand(len(rows), VOCAB, generator=torch.Generator().manual_seed(seed)) < 0.9
    banned[:, 5] = False
    logits = logits.masked_fill(banned, -torch.inf)
    sampler = Sampler([SamplingParams(**row, seed=seed) for row in rows], [[1, 2]] * len(rows), VOCAB)
    for _ in range(3):
        tokens = sampler(logits)
        assert not banned.gather(-1, tokens[:, None]).any()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_infinite_logit_wins_and_nan_is_refused(temperature: float) -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, 7] = torch.inf
    assert Sampler([SamplingParams(temperature=temperature)], [[]], VOCAB)(logits).tolist() == [7]
    for bad in (torch.full((1, VOCAB), torch.nan), torch.full((1, VOCAB), -torch.inf)):
        with pytest.raises(PellucidError, match="not numbers"):
            Sampler([SamplingParams(temperature=temperature)], [[]], VOCAB)(bad)


rows_of_params = st.lists(
    st.builds(
        SamplingParams,
        temperature=st.sampled_from([0.0, 0.7, 1.3]),
        top_k=st.sampled_from([0, 5]),
        top_p=st.sampled_from([1.0, 0.8]),
        min_p=st.sampled_from([0.0, 0.1]),
        repetition_penalty=st.sampled_from([1.0, 1.3]),
        presence_penalty=st.sampled_from([0.0, 0.5]),
        frequency_penalty=st.sampled_from([0.0, 0.5]),
        seed=st.integers(0, 100),
    ),
    min_size=2,
    max_size=4,
)


@given(seeds, rows_of_params, st.data())
def test_a_row_draws_what_it_draws_alone_even_after_others_left(
    seed: int, params: list[SamplingParams], data: st.DataObject
) -> None:
    count = len(params)
    prompts = [[row, row + 1] for row in range(count)]
    steps = [random_logits(seed + step, count) for step in range(6)]
    alone = []
    for row in range(count):
        sampler = Sampler([params[row]], [prompts[row]], VOCAB)
        alone.append([sampler(logits[row : row + 1]).item() for logits in steps])
    batch = Sampler(params, prompts, VOCAB)
    stay = sorted(data.draw(st.sets(st.integers(0, count - 1), min_size=1)))
    rows = list(range(count))
    for step, logits in enumerate(steps):
        if step == 3:
            batch.keep(stay)
            rows = stay
        assert batch(logits[rows]).tolist() == [alone[row][step] for row in rows]


def test_same_seed_same_draws_and_no_seed_becomes_a_fresh_one() -> None:
    logits = torch.zeros(1, 5000)
    params, other = SamplingParams().seeded(), SamplingParams().seeded()
    first, again = Sampler([params], [[]], 5000), Sampler([params], [[]], 5000)
    assert [first(logits).item() for _ in range(3)] == [again(logits).item() for _ in range(3)]
    assert params.seed != other.seed
    assert SamplingParams(seed=0).seeded().seed == 0


def test_repetition_counts_the_prompt_and_presence_does_not() -> None:
    logits = torch.tensor([[2.0, 1.9, 0.0]])
    assert Sampler([SamplingParams(temperature=0, presence_penalty=1)], [[0]], 3)(logits).tolist() == [0]
    assert Sampler([SamplingParams(temperature=0, repetition_penalty=1.5)], [[0]], 3)(logits).tolist() == [1]


def test_log_probabilities_are_of_the_raw_distribution() -> None:
    logits = random_logits(3)
    chosen, best, ids = sampling.log_probabilities(logits, torch.tensor([1, 2, 3]), 4)
    expected = logits.log_softmax(-1)
    torch.testing.assert_close(chosen, expected[[0, 1, 2], [1, 2, 3]])
    torch.testing.assert_close(best, expected.topk(4).values)
    assert torch.equal(ids, expected.topk(4).indices)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"temperature": -1}, "temperature = -1"),
        ({"temperature": math.nan}, "temperature = nan"),
        ({"temperature": math.inf}, "temperature = inf"),
        ({"temperature": "warm"}, "temperature = 'warm'"),
        ({"top_p": 0}, "top_p = 0"),
        ({"top_p": 1.01}, "top_p = 1.01"),
        ({"top_k": -1}, "top_k = -1"),
        ({"min_p": 2}, "min_p = 2"),
        ({"repetition_penalty": 0}, "repetition_penalty = 0"),
        ({"max_tokens": 0}, "max_tokens = 0"),
        ({"seed": 2**70}, "seed"),
        ({"logprobs": -1}, "logprobs = -1"),
        ({"stop": ["a", ""]}, "empty stop string"),
        ({"temprature": 1}, "did you mean 'temperature'"),
    ],
)
def test_bad_values_are_named(fields: dict, said: str) -> None:
    with pytest.raises(InputError, match=said.replace("(", r"\(")):
        SamplingParams(**fields)


def test_one_stop_string_is_a_list_of_one() -> None:
    assert SamplingParams(stop="\n").stop == ("\n",)
    assert SamplingParams(stop=["a", "b"]).with_({"top_k": 3}) == SamplingParams(stop=("a", "b"), top_k=3)
