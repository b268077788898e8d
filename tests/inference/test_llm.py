"""`LLM`: the engine from Python, over a model folder and over a real model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import pellucid
from pellucid import LLM, SamplingParams
from pellucid.checkpoints.save import save
from pellucid.errors import InputError, PellucidError
from pellucid.inference import llm as llm_module
from pellucid.inference.generate import generate
from tests.checkpoints.tiny import CONFIGS, random_model, tiny_tokenizer
from tests.models.few_bits import formats_of

GREEDY = SamplingParams(temperature=0, max_tokens=8, seed=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llm") / "model"
    save(random_model(CONFIGS["llama"]), tiny_tokenizer(), path)
    return path


@pytest.fixture(scope="module")
def llm(folder: Path) -> LLM:
    return LLM(folder, dtype="float32", num_blocks=32)


def test_texts_and_token_ids_are_answered_as_by_the_reference(llm: LLM, folder: Path) -> None:
    params = [GREEDY, SamplingParams(temperature=0.8, seed=3, max_tokens=6, logprobs=1), GREEDY]
    outputs = llm.generate(["the one", [4, 5, 6], "on"], params)
    model, tokenizer = pellucid.load(folder)
    for output, expected in zip(outputs, generate(model, tokenizer, ["the one", [4, 5, 6], "on"], params), strict=True):
        [answer] = output.answers
        assert (answer.text, answer.token_ids, answer.seed) == (expected.text, expected.token_ids, expected.seed)
        assert (answer.finish_reason, answer.finish_detail) == (expected.finish_reason, expected.finish_detail)
        assert answer.prompt_tokens == len(output.prompt) == expected.prompt_tokens
        assert (answer.logprobs is None) == (expected.logprobs is None)
        assert 0 < answer.first_token_seconds <= answer.seconds


def test_one_prompt_and_many_answers(llm: LLM) -> None:
    [output] = llm.generate("on", SamplingParams(n=3, seed=1, max_tokens=5, prompt_logprobs=0))
    assert [answer.seed for answer in output.answers] == [1, 2, 3]
    assert len({tuple(answer.token_ids) for answer in output.answers}) > 1
    assert output.text == output.answers[0].text
    assert output.prompt_logprobs is not None and len(output.prompt_logprobs) == len(output.prompt) - 1


def test_conversations_go_through_the_template(llm: LLM) -> None:
    question = [{"role": "user", "content": "the one"}]
    one, [same, other] = llm.chat(question, GREEDY), llm.chat([question, [*question, *question]], GREEDY)
    assert llm.tokenizer.decode(list(one[0].prompt)).startswith("<|im_start|>user")
    assert one[0].text == same.text and len(other.prompt) > len(same.prompt)


def test_weights_are_rounded_where_that_is_asked_for(folder: Path) -> None:
    llm = LLM(folder, quantize="int4", num_blocks=32)
    assert formats_of(llm.engine.model) == {"Q4_1"} and len(llm.generate("on", GREEDY)[0].answers) == 1
    with pytest.raises(InputError, match="there is no quantisation 'int3'"):
        LLM(folder, quantize="int3")


def test_a_draft_model_changes_no_answer(llm: LLM, folder: Path) -> None:
    params = SamplingParams(temperature=0.9, seed=4, max_tokens=12, ignore_eos=True)
    guessed = LLM(folder, dtype="float32", num_blocks=32, draft=folder, guesses=2)
    one, other = ([output.text for output in each.generate(["the one", "on"], params)] for each in (llm, guessed))
    assert one == other and guessed.engine.stats()["guesses_taken"] > 0


def test_beams_are_given_from_the_best_down(llm: LLM) -> None:
    [output] = llm.generate("on", SamplingParams(beam_width=3, n=2, max_tokens=6, logprobs=0, seed=0))
    means = [sum(answer.logprobs or []) / len(answer.token_ids) for answer in output.answers]
    assert len(means) == 2 and means[0] >= means[1] and output.answers[0].text != output.answers[1].text


def test_what_cannot_be_answered_is_refused_and_leaves_nothing(llm: LLM) -> None:
    with pytest.raises(InputError, match="the prompt has 64 tokens and the context holds 64"):
        llm.generate(["on", [1] * 64], GREEDY)
    with pytest.raises(InputError, match="there are 2 prompts and 1 sampling parameters"):
        llm.generate(["on", "in"], [GREEDY])
    assert not llm.engine.busy and llm.engine.stats()["blocks_used"] == 0


def test_an_answer_that_cannot_go_on_is_an_error(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm.engine.runner, "run", lambda step: torch.full((len(step.chunks), 272), float("nan")))
    with pytest.raises(PellucidError, match="the model's logits are not numbers"):
        llm.generate(["on", "in"], GREEDY)
    assert not llm.engine.busy and llm.engine.stats()["blocks_used"] == 0


def test_a_real_model_answers() -> None:
    llm = LLM("smollm2", num_blocks=64)
    [output] = llm.chat([{"role": "user", "content": "Name the capital of France."}], GREEDY)
    assert "Paris" in output.text and output.answers[0].finish_reason == "stop"


def test_a_gpu_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("cuda", "cuda:1", "meta"):
        with pytest.raises(InputError, match=f"device = '{device}': PyTorch sees no such GPU here; leave device out"):
            LLM("smollm2", device=device)
    with pytest.raises(InputError, match="device = 'gpu': PyTorch knows no such device; give cpu or cuda"):
        LLM("smollm2", device="gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match="device = 'cuda:2': the last GPU here is cuda:1; give that one"):
        LLM("smollm2", device="cuda:2")
    asked: list[dict[str, object]] = []
    monkeypatch.setattr(llm_module, "load", lambda name, **how: asked.append({"name": name, **how}))
    llm_module.load_on("cuda", "smollm2", "auto", None)
    assert asked == [{"name": "smollm2", "dtype": "auto", "device": "cuda", "quantize": None}]
