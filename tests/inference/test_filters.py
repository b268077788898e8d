"""The filters against transformers' processors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from pellucid.inference import filters

VOCAB = 97
seeds = st.integers(0, 2**31)


def random_logits(seed: int, rows: int = 3, size: int = VOCAB) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 4 * torch.randn(rows, size, generator=generator)


def column(value: float, rows: int = 3) -> torch.Tensor:
    return torch.full((rows,), value)


@given(seeds, st.floats(0.05, 20))
def test_temperature_is_transformers(seed: int, temperature: float) -> None:
    logits = random_logits(seed)
    theirs = TemperatureLogitsWarper(temperature)(None, logits)
    ours = filters.chances(logits, column(temperature))
    torch.testing.assert_close(ours, theirs.softmax(-1), rtol=1e-4, atol=1e-6)


def kept(logits: torch.Tensor, **asked: float) -> torch.Tensor:
    """What our filters leave of `logits`, in the places where it stood."""
    chances, order = logits.softmax(-1).sort(-1, descending=True)
    values: dict[str, Any] = {"top_k": filters.ALL, "top_p": 2.0, "min_p": 0.0, "typical_p": None} | asked
    columns = {name: None if one is None else torch.tensor([one] * len(logits)) for name, one in values.items()}
    return torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, filters.kept(chances, **columns)[0])


@given(seeds, st.integers(1, VOCAB + 20))
def test_top_k_is_transformers(seed: int, k: int) -> None:
    logits = random_logits(seed)
    assert torch.equal(kept(logits, top_k=k), TopKLogitsWarper(k)(None, logits).isfinite())


@given(seeds, st.floats(0.001, 0.999))
def test_top_p_is_transformers(seed: int, p: float) -> None:
    logits = random_logits(seed)
    theirs = TopPLogitsWarper(p)(None, logits).isfinite()
    chances, order = logits.double().softmax(-1).sort(-1, descending=True)
    before = torch.zeros_like(chances).scatter(-1, order, chances.cumsum(-1) - chances)
    decided = (before - p).abs() > 1e-5  # a token that stands on the border to within rounding may fall either way
    assert torch.equal(kept(logits, top_p=p)[decided], theirs[decided])


@given(seeds, st.floats(0.001, 0.999), st.floats(0, 0.9))
def test_typical_is_transformers(seed: int, mass: float, banned: float) -> None:
    logits = random_logits(seed)
    logits[:, 1:][torch.rand(3, VOCAB - 1, generator=torch.Generator().manual_seed(seed)) < banned] = -torch.inf
    theirs = TypicalLogitsWarper(mass)(None, logits).isfinite()
    ours = kept(logits, typical_p=mass)
    surprise = -logits.double().log_softmax(-1)
    distance = (surprise - ((-surprise).exp() * surprise).nansum(-1, keepdim=True)).abs()
    order = distance.argsort(-1)
    chances = (-surprise).exp().gather(-1, order)
    before = torch.zeros_like(chances).scatter(-1, order, chances.cumsum(-1) - chances)
    undecided = ((before - mass).abs() < 1e-5) | (distance < 1e-5)
    assert torch.equal(ours[~undecided], theirs[~undecided])
    assert ours.any(-1).all()


@given(seeds, st.floats(0.001, 1.0))
def test_min_p_is_transformers(seed: int, minimum: float) -> None:
    logits = random_logits(seed)
    theirs = MinPLogitsWarper(minimum)(None, logits).isfinite()
    relative = logits.double().softmax(-1) / logits.double().softmax(-1).amax(-1, keepdim=True)
    decided = (relative - minimum).abs() > 1e-6
    assert torch.equal(kept(logits, min_p=minimum)[decided], theirs[decided])


@given(seeds, st.floats(0.3, 3), st.integers(5, 60), st.floats(0.3, 0.95), st.floats(0.01, 0.3), st.floats(0.5, 0.99))
def test_the_filters_come_in_the_order_of_transformers(
    seed: int, temperature: float, k: int, p: float, minimum: float, mass: float
) -> None:
    logits = random_logits(seed)
    warpers = [
        TemperatureLogitsWarper(temperature),
        TopKLogitsWarper(k),
        TopPLogitsWarper(p),
        MinPLogitsWarper(minimum),
        TypicalLogitsWarper(mass),
    ]
    theirs = LogitsProcessorList(warpers)(None, logits).isfinite()
    ours = kept(logits / temperature, top_k=k, top_p=p, min_p=minimum, typical_p=mass)
    assert ((ours != theirs).sum(-1) <= 2).all()  # a token on the very border may fall either way
    assert (ours == theirs).float().mean() > 0.97


@given(seeds, st.floats(0.1, 10))
def test_repetition_penalty_is_transformers(seed: int, penalty: float) -> None:
    logits = random_logits(seed, rows=1)
    history = torch.randint(VOCAB, (1, 20), generator=torch.Generator().manual_seed(seed))
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(history, logits)
    seen = history.unique()
    ours = logits.clone()
    ours[0, seen] = filters.penalise_repetition(logits[0, seen], column(penalty, len(seen)))
    torch.testing.assert_close(ours, theirs)


def test_presence_and_frequency_by_hand() -> None:
    counts = torch.tensor([0, 1, 3])
    ours = filters.penalise_presence(torch.zeros(3), counts, torch.tensor([0.5] * 3), torch.tensor([0.25] * 3))
    assert ours.tolist() == [0.0, -0.75, -1.25]


@given(seeds)
def test_each_row_is_filtered_by_its_own_number(seed: int) -> None:
    chances = random_logits(seed).softmax(-1).sort(-1, descending=True).values
    cases = [
        (filters.in_top_k, torch.tensor([1, 3, 50])),
        (filters.in_nucleus, torch.tensor([0.999, 0.2, 0.9])),
        (filters.in_typical, torch.tensor([0.999, 0.2, 0.9])),
        (filters.in_min_p, torch.tensor([0.001, 0.5, 0.01])),
        (filters.chances, torch.tensor([0.3, 1.0, 7.0])),
    ]
    for function, values in cases:
        together = function(chances, values)
        for row in range(3):
            assert torch.equal(together[row], function(chances[row : row + 1], values[row : row + 1])[0])


@given(st.integers(1, 70), seeds)
def test_packed_bits_allow_what_they_say(size: int, seed: int) -> None:
    allowed = torch.rand(2, size, generator=torch.Generator().manual_seed(seed)) < 0.5
    bits = torch.zeros(2, -(-size // 32) * 4, dtype=torch.uint8)
    for row, token in allowed.nonzero().tolist():
        bits[row, token // 8] |= 1 << (token % 8)
    assert torch.equal(filters.allow(torch.zeros(2, size), bits) == 0, allowed)


@given(seeds, st.floats(0, 1, exclude_max=True), st.sampled_from([1, 97, 256, 257, 1000]))
def test_draw_inverts_the_cumulative_distribution(seed: int, uniform: float, size: int) -> None:
    chances = random_logits(seed, 1, size).softmax(-1)
    chances[0, 1::2] = 0
    token = filters.draw(chances, torch.tensor([uniform], dtype=torch.float64)).item()
    exact = (chances.double() / chances.double().sum())[0]
    assert exact[token] > 0
    assert exact[:token].sum() <= uniform + 1e-5
    assert exact[: token + 1].sum() >= uniform - 1e-5


@pytest.mark.parametrize("uniform", [0.0, 0.5, math.nextafter(1, 0)])
def test_a_draw_never_gives_what_has_no_chance(uniform: float) -> None:
    for only in (0, 255, 256, 600, 999):
        chances = torch.zeros(1, 1000)
        chances[0, only] = 1e-40
        assert filters.draw(chances, torch.tensor([uniform], dtype=torch.float64)).item() == only


@given(
    seeds, st.sampled_from([1e-300, 0.1, 0.5, 0.95, 0.999, 0.9999999]), st.sampled_from([1, 97, 3000]), st.booleans()
)
def test_the_border_of_a_nucleus_is_that_of_the_sorted_distribution(
    seed: int, p: float, size: int, with_equals: bool
) -> None:
    logits = random_logits(seed, 2, size)
    chances = (logits.round() if with_equals else logits).softmax(-1)
    border = filters.nucleus_border(chances, column(p, 2))
    inside = filters.in_nucleus(chances.sort(-1, descending=True).values, column(p, 2))
    assert (chances >= border).sum(-1).tolist() == inside.sum(-1).tolist()


@given(seeds, st.integers(1, 20), st.sampled_from([5, 64, 5000, 6400]), st.booleans())
def test_the_most_are_those_of_a_sort(seed: int, count: int, size: int, with_equals: bool) -> None:
    values = random_logits(seed, 2, size)
    values = values.round() if with_equals else values
    values[1, 7:] = -torch.inf
    largest, places = filters.most(values, count)
    assert torch.equal(largest, values.sort(-1, descending=True).values[:, :count])
    assert torch.equal(values.gather(-1, places), largest)
    assert all(len(set(row)) == len(row) for row in places.tolist())


@given(seeds)
def test_the_largest_is_the_first_of_the_largest(seed: int) -> None:
    logits = random_logits(seed).round().bfloat16()
    best, tokens = filters.largest(logits)
    assert torch.equal(best, logits.amax(-1))
    assert tokens.tolist() == [row.tolist().index(row.max().item()) for row in logits]
    logits[1, 5] = torch.nan
    assert filters.largest(logits)[0].isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("size", [VOCAB, 3000])
@pytest.mark.parametrize("count", [0, 1, 4])
def test_log_probabilities_are_of_the_raw_distribution(size: int, count: int) -> None:
    logits = random_logits(3, size=size)
    chosen, best, ids = filters.log_probabilities(logits, torch.tensor([1, 2, 3]), count)
    expected = logits.log_softmax(-1)
    torch.testing.assert_close(chosen, expected[[0, 1, 2], [1, 2, 3]])
    torch.testing.assert_close(best, expected.topk(count).values)
    assert torch.equal(ids, expected.topk(count).indices)
