"""Beam search finds what transformers' finds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from pellucid.inference import beams as module
from pellucid.inference.beams import Beam, Search
from tests.inference.whole_search import beam_search

VOCAB = 40
PROMPT = [3, 1, 4, 1, 5]


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.6,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=VOCAB - 1,
    )
    return LlamaForCausalLM(config).eval()


def reader(model: LlamaForCausalLM) -> Callable[[list[list[int]]], torch.Tensor]:
    @torch.inference_mode()
    def logprobs_of(texts: list[list[int]]) -> torch.Tensor:
        return model(torch.tensor(texts)).logits[:, -1].log_softmax(-1)

    return logprobs_of


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0, -0.5])
@pytest.mark.parametrize(("beams", "stop_ids"), [(1, [2]), (4, [2, 7, 9, 30]), (5, [2]), (3, list(range(20)))])
def test_the_beams_are_those_of_transformers(
    llama: LlamaForCausalLM, beams: int, stop_ids: list[int], length_penalty: float, early_stopping: Any
) -> None:
    options = {"length_penalty": length_penalty, "early_stopping": early_stopping} if beams > 1 else {}
    theirs = llama.generate(
        torch.tensor([PROMPT]),
        num_beams=beams,
        num_return_sequences=beams,
        max_new_tokens=12,
        eos_token_id=stop_ids,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    ours = beam_search(reader(llama), PROMPT, beams=beams, max_tokens=12, stop_ids=stop_ids, **options)
    for number, beam in enumerate(ours):
        expected = theirs.sequences[number].tolist()[len(PROMPT) :]
        assert beam.token_ids == expected[: len(beam.token_ids)]
        assert set(expected[len(beam.token_ids) :]) <= {VOCAB - 1}  # padding
        if beams > 1:
            assert beam.score == pytest.approx(theirs.sequences_scores[number].item(), rel=1e-4)
    assert len(ours) == beams


@given(st.integers(0, 1000), st.integers(1, 3))
@settings(max_examples=30)
def test_enough_beams_find_the_best_of_all_answers(seed: int, tokens: int) -> None:
    """With as many beams as there are beginnings, the search is exhaustive."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(4, 4, generator=generator).log_softmax(-1)  # ln P of a token after another

    def logprobs_of(texts: list[list[int]]) -> torch.Tensor:
        return table[[text[-1] for text in texts]]

    best = beam_search(logprobs_of, [0], beams=4**tokens, max_tokens=tokens, length_penalty=0.0)[0]
    answers = torch.cartesian_prod(*[torch.arange(4)] * tokens).reshape(-1, tokens).tolist()
    chances = {tuple(one): sum(table[a, b].item() for a, b in zip([0, *one], one, strict=False)) for one in answers}
    assert best.score == pytest.approx(max(chances.values()), abs=1e-5)
    assert chances[tuple(best.token_ids)] == pytest.approx(best.score, abs=1e-5)


def test_a_step_builds_few_beams_however_many_tokens_may_end_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    built = 0

    def counted(*fields: Any) -> Beam:
        nonlocal built
        built += 1
        return Beam(*fields)

    monkeypatch.setattr(module, "Beam", counted)
    search = Search(beams=8, max_tokens=9, stop_ids=range(VOCAB - 10))
    for rows in (1, 8, 8):
        built = 0
        search.advance(torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(rows)).log_softmax(-1))
        assert len(search.begun) == 8
        assert built <= 8 + 1 + 2 * 8  # what goes on, and what ends: as it is, and with its score
