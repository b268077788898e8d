"""Rankings in rows: every answer once, every pair of a prompt beside the others, whatever way a batch is cut."""

from __future__ import annotations

from collections import Counter
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.data.examples import PADDING
from pellucid.data.pairs import Pairs
from pellucid.data.rankings import RankedExamples, Rankings
from pellucid.models.classifier import Classifier
from pellucid.models.config import ModelConfig
from pellucid.models.decoder import Decoder
from tests.data.made import in_memory

SCAFFOLD = 7  # what a template writes behind the assistant's turn

# Of each prompt: the lengths of its answers, and its pairs as places among them.
rankings = st.lists(
    st.lists(st.integers(1, 9), min_size=2, max_size=4).flatmap(
        lambda sizes: st.tuples(
            st.just(sizes),
            st.lists(
                st.permutations(range(len(sizes))).map(lambda order: (order[0], order[1])), min_size=1, max_size=6
            ),
        )
    ),
    min_size=1,
    max_size=8,
)
Drawn = list[tuple[list[int], list[tuple[int, int]]]]


def made(drawn: Drawn) -> Pairs:
    """No token comes in two prompts or two answers, but for what a template adds."""
    documents, masks, token = [], [], 100
    for number, (sizes, pairs) in enumerate(drawn):
        answers = []
        for size in sizes:
            answers.append([*range(token, token + size)])
            token += size
        for pair in pairs:
            for one in pair:
                documents.append([2 * number + 10, 2 * number + 11, *answers[one], SCAFFOLD])
                masks.append([False, False, *[True] * len(answers[one]), False])
    return Pairs(in_memory(documents, masks), 16, seed=0)


def told(examples: RankedExamples) -> Counter[tuple[tuple[int, ...], tuple[int, ...], float]]:
    """The pairs of a batch as tokens, prompts included, with their shares."""
    answers = []
    for (row, end), length in zip(examples.ends.tolist(), examples.lengths.tolist(), strict=True):
        here = examples.documents[row] == examples.documents[row, end]
        ids = examples.tokens[row][here].tolist()
        assert examples.positions[row, end] == len(ids) - 1 and len(ids) == length + 2
        answers.append(tuple(ids))
    pairs = zip(examples.pairs.tolist(), examples.shares.tolist(), strict=True)
    return Counter((answers[i], answers[j], round(share, 6)) for (i, j), share in pairs)


@settings(deadline=None)
@given(drawn=rankings, batch=st.integers(1, 5), rows=st.integers(1, 3))
def test_every_pair_comes_once_an_epoch_with_all_others_of_its_prompt(drawn: Drawn, batch: int, rows: int) -> None:
    data = Rankings(made(drawn), seed=1)
    seen, cut = Counter(), Counter()
    prompts = answers = 0
    for start in range(0, len(data), batch):
        examples = data.read(range(start, min(start + batch, len(data))))
        assert examples.real == sum(examples.lengths.tolist()) + 2 * len(examples.lengths)
        prompts, answers = prompts + examples.supervised, answers + len(examples.ends)
        assert float(examples.shares.sum()) == pytest.approx(examples.supervised, rel=1e-6)
        assert examples.examples.supervised == sum(examples.lengths.tolist())
        seen += told(examples)
        parts = examples.split(rows)
        assert sum(part.supervised for part in parts) == examples.supervised
        cut += sum(map(told, parts), Counter())
    wanted: Counter[tuple[tuple[int, ...], tuple[int, ...], float]] = Counter()
    token = 100
    for number, (sizes, pairs) in enumerate(drawn):
        begins = [token + sum(sizes[:place]) for place in range(len(sizes))]
        token += sum(sizes)
        ids = [(2 * number + 10, 2 * number + 11, *range(b, b + s)) for b, s in zip(begins, sizes, strict=True)]
        wanted += Counter((ids[i], ids[j], round(1 / len(pairs), 6)) for i, j in pairs)
    assert seen == wanted == cut and prompts == len(drawn)
    assert answers == sum(len({one for pair in pairs for one in pair}) for _, pairs in drawn) == data.num_answers
    assert data.num_pairs == sum(len(pairs) for _, pairs in drawn)


def test_the_order_is_a_function_of_seed_and_index() -> None:
    drawn = [([n % 7 + 1, 9], [(0, 1)]) for n in range(30)]
    one, other = Rankings(made(drawn), seed=3), Rankings(made(drawn), seed=3)
    again = other.read(range(2 * len(other)))
    for index in reversed(range(2 * len(one))):
        assert torch.equal(one.read([index]).tokens[0], again.tokens[index])
    epochs = again.tokens.split(len(other))
    assert not torch.equal(*epochs) and sorted(epochs[0].tolist()) == sorted(epochs[1].tolist())


def test_no_rows_and_padding() -> None:
    data = Rankings(made([([3, 2], [(0, 1)])]), seed=0)
    nothing = data.read([])
    assert nothing.supervised == 0 and nothing.tokens.shape == (0, 32) and nothing.pairs.shape == (0, 2)
    assert int((data.read([0]).documents == PADDING).sum()) == 32 - 9


def test_a_prompt_with_many_answers_makes_rows_longer() -> None:
    many = [(place, 5) for place in range(5)]
    data = Rankings(made([([9] * 6, many), ([1, 2], [(0, 1)])]), seed=0)
    assert data.context == 6 * 11 and data.num_answers == 8


@cache
def classifier() -> Classifier:
    return Classifier.of(
        Decoder(
            ModelConfig(
                vocab_size=400, hidden_size=16, num_layers=2, num_heads=2, intermediate_size=24, max_positions=64
            )
        )
    )


@settings(deadline=None, max_examples=25)
@given(drawn=rankings)
def test_each_answer_is_scored_as_if_it_were_alone(drawn: Drawn) -> None:
    """Promise D3. float32, scores of order 1: sums in another order differ by about 1e-6 of the largest term."""
    data = Rankings(made(drawn), seed=0)
    examples = data.read(range(len(data)))
    with torch.no_grad():
        rows, ends = examples.ends.unbind(1)
        scores = classifier().scores(examples.tokens, examples.batch)[rows, ends]
        for row, end, score in zip(rows.tolist(), ends.tolist(), scores, strict=True):
            alone = examples.tokens[row][examples.documents[row] == examples.documents[row, end]]
            assert torch.allclose(classifier().scores(alone[None])[0, -1], score, rtol=0, atol=1e-5)
