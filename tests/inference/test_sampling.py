"""The sampler against its promises: a row draws what it draws alone, and every value is survived."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from pellucid.errors import InputError, PellucidError
from pellucid.inference import filters, sampling
from pellucid.inference.params import SamplingParams
from pellucid.inference.rows import Row, new_row
from pellucid.inference.sampling import Sampler
from tests.inference.test_filters import VOCAB, random_logits, seeds
from tests.inference.tiny import EOS, ByteTokenizer
from tests.inference.tiny import VOCAB as BYTES

TOKENIZER = ByteTokenizer()


def row(prompt: list[int] = [], vocab_size: int = VOCAB, stop_ids: tuple[int, ...] = (), **fields: Any) -> Row:  # noqa: B006
    params = SamplingParams(**fields)
    return new_row(params, prompt, vocab_size, stop_ids=stop_ids, end_ids=stop_ids, tokenizer=TOKENIZER)


@given(
    seeds,
    st.lists(st.integers(0, 255), min_size=2, max_size=20),
    st.dictionaries(st.integers(0, BYTES - 1), st.floats(-100, 100), min_size=1, max_size=5),
    st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=4),
    st.floats(0.5, 2),
    st.integers(1, 4),
)
def test_what_shapes_the_logits_is_transformers(
    seed: int, prompt: list[int], bias: dict[int, float], words: list[str], penalty: float, min_tokens: int
) -> None:
    """Where each text has one way to be written, as with bytes, transformers' bad words are ours."""
    logits = random_logits(seed, rows=1, size=BYTES)
    one = row(
        prompt,
        BYTES,
        (EOS,),
        temperature=0,
        logit_bias=bias,
        bad_words=words,
        repetition_penalty=penalty,
        min_tokens=min_tokens,
    )
    answer = torch.tensor([list(b"abcab"[: 1 + seed % 5])])  # text that some of the words go on from
    for token in answer[0].tolist():
        for state in one.tracked:
            state.advance(token)
    one.drawn = answer.shape[1]
    seen = torch.cat([torch.tensor([prompt]), answer], dim=1)
    theirs = SequenceBiasLogitsProcessor([[[token], value] for token, value in bias.items()])(seen, logits)
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(seen, theirs)
    theirs = NoBadWordsLogitsProcessor([list(word.encode()) for word in words])(answer, theirs)
    theirs = MinNewTokensLengthLogitsProcessor(len(prompt), min_tokens, EOS)(seen, theirs)
    sampler = Sampler(BYTES)
    sampler._plan = sampling._Plan([one], torch.device("cpu"))
    torch.testing.assert_close(sampler._shaped(logits, sampler._plan), theirs)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 0.5},
        {"top_k": 3},
        {"top_p": 0.8},
        {"top_k": 4, "top_p": 0.6},
        {"min_p": 0.25},
        {"typical_p": 0.9},
        {"logit_bias": {3: 2.0}},
        {"temperature": 3, "top_p": 0.9999},
    ],
)
@pytest.mark.parametrize("size", [4, 900])
def test_draws_follow_the_distribution(fields: dict[str, Any], size: int) -> None:
    """Pearson's chi-square against what transformers' processors make of the distribution, rare tokens put together."""
    torch.manual_seed(0)
    logits = torch.tensor([0.5, 0.25, 0.15, 0.1]).log() if size == 4 else 3 * torch.randn(size)
    expected = transformers_chances(logits, fields)
    rows = [row(vocab_size=size, seed=seed, **fields) for seed in range(80)]
    sampler = Sampler(size)
    tokens = torch.cat([sampler(logits.expand(80, size), rows) for _ in range(100)])
    counts = torch.bincount(tokens, minlength=size)
    assert counts[expected == 0].sum() == 0
    rare = 8000 * expected < 10
    counts = torch.cat([counts[~rare], counts[rare].sum()[None]])
    expected = 8000 * torch.cat([expected[~rare], expected[rare].sum()[None]])
    statistic = ((counts - expected) ** 2 / expected)[expected > 0].sum().item()
    freedom = int((expected > 0).sum()) - 1
    assert statistic < freedom + 4 * math.sqrt(2 * freedom) + 4  # beyond four standard deviations


def transformers_chances(logits: torch.Tensor, fields: dict[str, Any]) -> torch.Tensor:
    scores = logits[None]
    for token, value in fields.get("logit_bias", {}).items():
        scores = SequenceBiasLogitsProcessor([[[token], value]])(torch.zeros(1, 1, dtype=torch.int64), scores)
    for name, processor in (
        ("temperature", TemperatureLogitsWarper),
        ("top_k", TopKLogitsWarper),
        ("top_p", TopPLogitsWarper),
        ("min_p", MinPLogitsWarper),
        ("typical_p", TypicalLogitsWarper),
    ):
        if name in fields:
            scores = processor(float(fields[name]) if name != "top_k" else fields[name])(None, scores)
    return scores.softmax(-1)[0]


@given(
    seeds,
    st.sampled_from(
        [{"top_k": 700, "top_p": 0.5}, {"top_k": 5000, "top_p": 0.999}, {"min_p": 1e-3}, {"typical_p": 0.9}]
    ),
    st.sampled_from([0.1, 1.0]),
)
@settings(max_examples=30)
def test_a_guess_that_is_too_small_is_made_up_for(seed: int, fields: dict[str, float], spread: float) -> None:
    """A flat distribution, whose kept tokens are more than the first guess, gives what it would give at once."""
    size = 6000
    logits = spread * torch.randn(3, size, generator=torch.Generator().manual_seed(seed))
    with pytest.MonkeyPatch.context() as patch:
        drawn = Sampler(size)(logits, [row(vocab_size=size, seed=seed, **fields) for _ in range(3)])
        patch.setattr(filters, "GUESS", size)
        at_once = Sampler(size)(logits, [row(vocab_size=size, seed=seed, **fields) for _ in range(3)])
    assert (drawn == at_once).sum() >= 2  # sums in another order may round a draw to its neighbour


extreme = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 1e-300, 1e-40, 1e-30, 1e-6, 1.0, 1e6, 1e30, 1e300]),
        "top_p": st.sampled_from([1e-300, 1e-6, 0.5, 1 - 1e-16, 1.0]),
        "top_k": st.sampled_from([0, 1, 2, 2**31 - 1]),
        "min_p": st.sampled_from([0.0, 1e-300, 0.5, 1.0]),
        "typical_p": st.sampled_from([1e-300, 1e-6, 0.5, 1 - 1e-16, 1.0]),
        "repetition_penalty": st.sampled_from([1e-6, 1.0, 1e6]),
        "presence_penalty": st.sampled_from([-1e6, 0.0, 1e6]),
        "frequency_penalty": st.sampled_from([-1e6, 0.0, 1e6]),
        "logit_bias": st.sampled_from([{}, {5: -100.0}, {5: 100.0, 6: -100.0}]),
        "min_tokens": st.sampled_from([0, 1, 10**9]),
        "seed": st.sampled_from([0, 1, 2**63 - 1]),
    }
)


@given(seeds, st.lists(extreme, min_size=1, max_size=4), st.sampled_from([1e-30, 1.0, 1e4, 1e38]))
def test_extreme_values_give_a_token_that_the_model_allows(
    seed: int, asked: list[dict[str, Any]], scale: float
) -> None:
    logits = (scale * random_logits(seed, len(asked))).clamp(-3e38, 3e38)
    banned = torch.rand(len(asked), VOCAB, generator=torch.Generator().manual_seed(seed)) < 0.9
    banned[:, 5] = False
    logits = logits.masked_fill(banned, -torch.inf)
    rows = [row([1, 2], stop_ids=(7,), **fields) for fields in asked]
    sampler = Sampler(VOCAB)
    for _ in range(3):
        tokens = sampler(logits, rows)
        assert not banned.gather(-1, tokens[:, None]).any()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("others", [{}, {"logit_bias": {1: 1.0}}])
def test_infinite_logit_wins_and_nan_is_refused(temperature: float, others: dict[str, Any]) -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, 7] = torch.inf
    assert Sampler(VOCAB)(logits, [row(temperature=temperature, **others)]).tolist() == [7]
    for bad in (torch.full((1, VOCAB), torch.nan), torch.full((1, VOCAB), -torch.inf)):
        with pytest.raises(PellucidError, match="not numbers"):
            Sampler(VOCAB)(bad, [row(temperature=temperature, **others)])


def test_a_row_without_a_token_is_named_and_the_others_go_on_as_if_nothing_had_been() -> None:
    logits = random_logits(0)
    expected = Sampler(VOCAB)(logits, [row(seed=1), row(seed=2), row(seed=3)]).tolist()
    rows = [row(seed=1), row(seed=2), row(seed=3)]
    bad = logits.clone()
    bad[1, 4] = torch.nan
    sampler = Sampler(VOCAB)
    with pytest.raises(sampling.NoToken) as error:
        sampler(bad, rows)
    assert error.value.rows == (1,)
    assert sampler(logits, rows).tolist() == expected
    with pytest.raises(sampling.NoToken, match="leaves no token") as error:
        words = [chr(letter) for letter in range(97)]
        sampler(logits, [row(seed=1), row(seed=2), row(bad_words=words)])
    assert error.value.rows == (2,)


asked_of_rows = st.builds(
    dict,
    temperature=st.sampled_from([0.0, 0.7, 1.3]),
    top_k=st.sampled_from([0, 5]),
    top_p=st.sampled_from([1.0, 0.8]),
    min_p=st.sampled_from([0.0, 0.1]),
    typical_p=st.sampled_from([1.0, 0.7]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    presence_penalty=st.sampled_from([0.0, 0.5]),
    frequency_penalty=st.sampled_from([0.0, 0.5]),
    logit_bias=st.sampled_from([{}, {3: 5.0, 60: 4.0}]),
    bad_words=st.sampled_from([(), ("!", "a", "0")]),
    min_tokens=st.sampled_from([0, 2, 5]),
    seed=st.integers(0, 100),
)


@given(seeds, st.lists(asked_of_rows, min_size=2, max_size=5), st.data())
@settings(max_examples=150)
def test_a_row_draws_what_it_draws_alone_whoever_joins_or_leaves_in_whatever_order(
    seed: int, asked: list[dict[str, Any]], data: st.DataObject
) -> None:
    def rows() -> list[Row]:
        return [row([place, 1], stop_ids=(9, 40), **fields) for place, fields in enumerate(asked)]

    steps = 5
    logits = [random_logits(seed + place, steps) for place in range(len(asked))]  # of each row, at each of its tokens
    alone = []
    for place, one in enumerate(rows()):
        sampler = Sampler(VOCAB)
        alone.append([sampler(logits[place][step : step + 1], [one]).item() for step in range(steps)])

    together, sampler = rows(), Sampler(VOCAB)
    drawn: list[list[int]] = [[] for _ in asked]
    while any(len(tokens) < steps for tokens in drawn):
        open_rows = [place for place, tokens in enumerate(drawn) if len(tokens) < steps]
        chosen = data.draw(st.lists(st.sampled_from(open_rows), unique=True, min_size=1))
        batch = torch.stack([logits[place][len(drawn[place])] for place in chosen])
        for place, token in zip(chosen, sampler(batch, [together[place] for place in chosen]).tolist(), strict=True):
            drawn[place].append(token)
    assert drawn == alone


def test_same_seed_same_draws_and_no_seed_becomes_a_fresh_one() -> None:
    logits = torch.zeros(1, 5000)
    params, other = SamplingParams().seeded(), SamplingParams().seeded()
    sampler = Sampler(5000)
    first, again = new_row(params, [], 5000), new_row(params, [], 5000)
    drawn = [sampler(logits, [first]).item() for _ in range(3)]
    assert drawn == [sampler(logits, [again]).item() for _ in range(3)]
    assert params.seed != other.seed
    assert SamplingParams(seed=0).seeded().seed == 0


def test_repetition_counts_the_prompt_and_presence_does_not() -> None:
    logits = torch.tensor([[2.0, 1.9, 0.0]])
    assert Sampler(3)(logits, [row([0], 3, temperature=0, presence_penalty=1)]).tolist() == [0]
    assert Sampler(3)(logits, [row([0, 99], 3, temperature=0, repetition_penalty=1.5)]).tolist() == [1]


def test_penalties_grow_with_the_answer() -> None:
    logits = torch.tensor([[2.0, 1.5, 0.9]])
    sampler, one = Sampler(3), row([], 3, temperature=0, frequency_penalty=0.4)
    assert [sampler(logits, [one]).item() for _ in range(6)] == [0, 0, 1, 0, 1, 2]


def test_no_stop_token_before_the_minimum() -> None:
    logits = torch.tensor([[1.0, 5.0, 4.0]])
    sampler = Sampler(3)
    one = row([], 3, stop_ids=(1, 2, 99), temperature=0, min_tokens=2)
    assert [sampler(logits, [one]).item() for _ in range(3)] == [0, 0, 1]


def test_half_precision_logits_are_taken() -> None:
    logits = random_logits(1).bfloat16()
    rows = [row(temperature=0), row(seed=1), row(temperature=0, repetition_penalty=1.1)]
    expected = Sampler(VOCAB)(logits.float(), [row(temperature=0), row(seed=1), row(temperature=0)])
    assert Sampler(VOCAB)(logits, rows).tolist() == expected.tolist()


def test_text_features_need_the_tokenizer() -> None:
    with pytest.raises(InputError, match="tokenizer"):
        new_row(SamplingParams(bad_words="a"), [], VOCAB)


@pytest.mark.gpu
def test_a_gpu_draws_what_the_processor_draws() -> None:
    fields = [
        {"temperature": 0},
        {"repetition_penalty": 1.3, "logit_bias": {3: 2.0}},
        {"top_k": 20, "top_p": 0.9},
        {"top_p": 0.7},
        {"typical_p": 0.8, "bad_words": ["a"]},
    ]
    logits = random_logits(0, rows=len(fields))
    drawn = []
    for device in ("cpu", "cuda"):
        rows = [row([1, 2], seed=5, **asked) for asked in fields]
        sampler = Sampler(VOCAB, device)
        drawn.append([sampler(logits.to(device), rows).tolist() for _ in range(5)])
    assert drawn[0] == drawn[1]
