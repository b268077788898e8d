"""Beam search in the engine finds what the reference and transformers find, however little room there is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from pellucid.checkpoints.save import save
from pellucid.errors import InputError
from pellucid.inference.beams import Beam
from pellucid.inference.engine import Engine
from pellucid.inference.generate import drawable, generate
from pellucid.inference.params import SamplingParams
from tests.checkpoints.tiny import CONFIGS, random_model, tiny_tokenizer
from tests.inference.test_engine import engine, ids_of, prompts, run
from tests.inference.whole_search import beam_search

pytestmark = pytest.mark.usefixtures("one_thread")

MODEL = random_model(CONFIGS["llama"])
TOKENIZER = tiny_tokenizer()
STOPS = (5, 9, 40, 77, 101, 180, 222)  # enough of them that beams end


def expected(prompt: list[int], params: SamplingParams) -> list[Beam]:
    @torch.inference_mode()
    def logprobs_of(texts: list[list[int]]) -> torch.Tensor:
        return MODEL(torch.tensor(texts))[:, -1].log_softmax(-1)[:, : drawable(MODEL, TOKENIZER)]

    assert params.beam_width is not None and params.max_tokens is not None
    return beam_search(
        logprobs_of, prompt, beams=params.beam_width, max_tokens=params.max_tokens,
        stop_ids=[*params.stop_token_ids, *([] if params.ignore_eos else TOKENIZER.stop_ids)],
        length_penalty=params.length_penalty, early_stopping=params.early_stopping,
    )[: params.n]  # fmt: skip


def check(one: Engine, asked: list[tuple[list[int], SamplingParams]], late: int = 0) -> None:
    found = run(one, asked, late=late)
    for number, (prompt, params) in enumerate(asked):
        if params.beam_width is None:
            [plain] = generate(MODEL, TOKENIZER, [prompt], params)
            assert ids_of(found[number][0]) == plain.token_ids
            continue
        beams = expected(prompt, params)
        assert [ids_of(found[number][index]) for index in range(params.n)] == [beam.token_ids for beam in beams]
        for index, beam in enumerate(beams):
            events = found[number][index]
            assert [event.logprob for event in events] == pytest.approx(beam.logprobs, abs=1e-4)
            ends = beam.token_ids[-1] in params.stop_token_ids + tuple(TOKENIZER.stop_ids)
            assert events[-1].finish_reason == ("stop" if ends else "length")
            shown = beam.token_ids[:-1] if ends else beam.token_ids
            assert "".join(event.text for event in events) == TOKENIZER.decode(shown)


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
def test_the_reference_finds_the_same(length_penalty: float, early_stopping: Any) -> None:
    asked = [
        (
            prompt,
            SamplingParams(
                beam_width=width, n=min(2, width), max_tokens=10, length_penalty=length_penalty,
                early_stopping=early_stopping, stop_token_ids=STOPS, logprobs=0,
            ),
        )
        for prompt, width in zip(prompts(4), (1, 3, 4, 5), strict=True)
    ]  # fmt: skip
    check(engine(num_blocks=200, max_sequences=16), asked)


@pytest.mark.parametrize(
    "options",
    [
        {"num_blocks": 14},  # two searches hardly fit
        {"num_blocks": 30, "max_sequences": 4},  # as many sequences as one of them has beams
        {"max_tokens_per_step": 5, "max_sequences": 5},
        {"guesses": 3},
        {"native": False},
    ],
)
def test_answers_do_not_depend_on_the_room_that_there_is(options: dict[str, Any]) -> None:
    beams = SamplingParams(beam_width=4, n=3, max_tokens=12, stop_token_ids=STOPS[:2], logprobs=0)
    drawn = SamplingParams(temperature=0.8, seed=3, max_tokens=14)
    asked = [(prompt, drawn if n % 3 == 1 else beams) for n, prompt in enumerate(prompts(7, longest=30))]
    check(engine(**options), asked, late=4)


@given(st.data())
@settings(max_examples=15)
def test_any_searches_in_any_cache_end_and_leave_nothing(data: st.DataObject) -> None:
    asked = []
    for number in range(data.draw(st.integers(1, 4))):
        width = data.draw(st.integers(1, 4))
        params = SamplingParams(beam_width=width, n=width, max_tokens=data.draw(st.integers(1, 8)), logprobs=0)
        asked.append((prompts(1, seed=data.draw(st.integers(0, 9)) + number, longest=20)[0], params))
    sequences = data.draw(st.integers(4, 8))
    one = engine(num_blocks=data.draw(st.integers(14, 24)), max_sequences=sequences, max_tokens_per_step=sequences + 3)
    check(one, asked, late=data.draw(st.integers(0, len(asked) - 1)))


def test_transformers_finds_the_same(tmp_path: Path) -> None:
    save(MODEL, TOKENIZER, tmp_path / "model")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    prompt = prompts(1, seed=2)[0]
    params = SamplingParams(beam_width=4, n=4, max_tokens=12, stop_token_ids=STOPS, ignore_eos=True)
    # What the tokenizer has no token for is never taken here
    never = [[token] for token in range(drawable(MODEL, TOKENIZER), MODEL.config.vocab_size)]
    found = theirs.generate(
        torch.tensor([prompt]), num_beams=4, num_return_sequences=4, max_new_tokens=12, do_sample=False,
        eos_token_id=list(STOPS), pad_token_id=0, bad_words_ids=never or None,
    )  # fmt: skip
    ours = run(engine(), [(prompt, params)])[0]
    for index in range(4):
        ids = ids_of(ours[index])
        assert found[index].tolist()[len(prompt) :][: len(ids)] == ids


def test_a_search_that_is_aborted_is_free_at_once() -> None:
    one = engine()
    number = one.add(prompts(1)[0], SamplingParams(beam_width=5, max_tokens=20, ignore_eos=True))
    for _ in range(6):
        assert one.step() == []
    assert one.stats()["running"] == 5
    one.abort(number)
    assert not one.busy and one.stats()["blocks_used"] == 0 and one.step() == []


def test_a_search_whose_step_failed_half_way_can_be_aborted(monkeypatch: pytest.MonkeyPatch) -> None:
    one = engine()
    number = one.add(prompts(1)[0], SamplingParams(beam_width=5, max_tokens=20, ignore_eos=True))
    finish, ended = one.scheduler.finish, []

    def fails(sequence: Any) -> None:
        finish(sequence)
        ended.append(sequence)
        raise RuntimeError("half-way")

    monkeypatch.setattr(one.scheduler, "finish", fails)
    with pytest.raises(RuntimeError, match="half-way"):
        for _ in range(20):
            one.step()
    monkeypatch.setattr(one.scheduler, "finish", finish)
    one.abort(number)
    assert ended and not one.busy and one.stats()["blocks_used"] == 0


def test_beams_share_their_blocks() -> None:
    one = engine(num_blocks=200)
    one.add([7] * 40, SamplingParams(beam_width=6, max_tokens=8, ignore_eos=True))
    for _ in range(4):
        one.step()
    assert one.stats()["running"] == 6 and one.stats()["blocks_used"] <= 2 + 6


def test_logits_that_are_no_numbers_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    one = engine()
    monkeypatch.setattr(one.runner, "run", lambda step: torch.full((len(step.chunks), 272), float("nan")))
    found = run(one, [([1, 2], SamplingParams(beam_width=2, max_tokens=4))])
    assert found[0][0][-1].finish_reason == "error"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"beam_width": 0}, "beam_width = 0"),
        ({"beam_width": 2, "n": 3}, "n = 3 is more than beam_width = 2"),
        ({"length_penalty": 2.0}, "length_penalty belongs to beam search"),
        ({"early_stopping": True}, "early_stopping belongs to beam search"),
        ({"beam_width": 2, "repetition_penalty": 1.1}, "without repetition_penalty"),
        ({"beam_width": 2, "stop": "x"}, "without stop"),
        ({"beam_width": 2, "logit_bias": {3: 1.0}}, "without logit_bias"),
        ({"beam_width": 2, "logprobs": 2}, "no alternatives"),
        ({"beam_width": 2, "early_stopping": "maybe"}, "early_stopping"),
    ],
)
def test_what_does_not_go_with_beams_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        SamplingParams(max_tokens=4, **fields)


def test_more_beams_than_there_is_room_for_are_refused() -> None:
    one = engine(num_blocks=8)
    with pytest.raises(InputError, match="beam_width = 9: the engine runs 8 at once"):
        one.add([1, 2], SamplingParams(beam_width=9))
    with pytest.raises(InputError, match="its cache of 128 tokens has room for few after a prompt of 40"):
        one.add([1] * 40, SamplingParams(beam_width=6))
    with pytest.raises(InputError, match="the reference generator has no beam_width"):
        generate(MODEL, TOKENIZER, [[1, 2]], SamplingParams(beam_width=2))
    assert not one.busy
