"""The reference engine against a loop that runs the whole text through the model for every token."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.errors import InputError
from pellucid.inference import generate as engine
from pellucid.inference.generate import generate, stream
from pellucid.inference.params import SamplingParams
from pellucid.models.decoder import Decoder
from tests.inference.tiny import ARCHITECTURES, BOS, EOS, VOCAB, ByteTokenizer, tiny_model

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
PROMPTS = ["The cat", "a", "Once upon a time there was", "xyz"]


@torch.inference_mode()
def slowly(model: Decoder, ids: list[int], count: int) -> list[int]:
    """The oracle: greedy, without a cache, without a batch."""
    ids = list(ids)
    start = len(ids)
    for _ in range(count):
        ids.append(int(model(torch.tensor([ids]))[0, -1, :VOCAB].argmax()))
    return ids[start:]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("chunk", [2048, 3])
def test_batch_equals_alone_equals_without_a_cache(
    architecture: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "PREFILL_CHUNK", chunk)
    model, tokenizer = tiny_model(architecture), ByteTokenizer()
    together = [one.token_ids for one in generate(model, tokenizer, PROMPTS, GREEDY)]
    alone = [generate(model, tokenizer, [prompt], GREEDY)[0].token_ids for prompt in PROMPTS]
    oracle = [slowly(model, tokenizer.encode(prompt, add_bos=True), 12) for prompt in PROMPTS]
    assert together == alone == oracle
    assert len({token for row in oracle for token in row}) > 3  # the models do not say one thing for ever


@given(
    st.lists(st.tuples(st.text("abc ", max_size=20), st.integers(1, 15), st.floats(0, 2)), min_size=2, max_size=5),
    st.sampled_from(list(ARCHITECTURES)),
    st.integers(0, 1000),
)
@settings(max_examples=30)
def test_rows_that_leave_change_nothing_for_the_others(
    rows: list[tuple[str, int, float]], architecture: str, seed: int
) -> None:
    model, tokenizer = tiny_model(architecture), ByteTokenizer()
    params = [
        SamplingParams(temperature=heat, top_p=0.9, max_tokens=most, seed=seed + row)
        for row, (_, most, heat) in enumerate(rows)
    ]
    prompts = [text for text, _, _ in rows]
    together = generate(model, tokenizer, prompts, params)
    for row, prompt in enumerate(prompts):
        assert together[row].token_ids == generate(model, tokenizer, [prompt], [params[row]])[0].token_ids


def test_events_joined_are_the_completions() -> None:
    model, tokenizer = tiny_model(), ByteTokenizer()
    params = SamplingParams(temperature=1.5, max_tokens=20, seed=3, logprobs=2, stop=("a", "é"))
    completions = generate(model, tokenizer, PROMPTS, params)
    events = list(stream(model, tokenizer, PROMPTS, params))
    for row, completion in enumerate(completions):
        own = [event for event in events if event.row == row]
        assert "".join(event.text for event in own) == completion.text
        assert [event.token_id for event in own] == completion.token_ids
        assert [event.logprob for event in own] == completion.logprobs
        assert [event.finish_reason is not None for event in own] == [False] * (len(own) - 1) + [True]
        assert own[-1].finish_reason == completion.finish_reason
        assert 0 < completion.first_token_seconds <= completion.seconds


def test_text_is_the_decoded_tokens() -> None:
    model, tokenizer = tiny_model(), ByteTokenizer()
    params = SamplingParams(temperature=2, max_tokens=40, seed=1, ignore_eos=True)
    for completion in generate(model, tokenizer, PROMPTS, params):
        assert completion.text == tokenizer.decode(completion.token_ids)


def test_stop_string_across_tokens_ends_the_answer_and_is_not_in_it() -> None:
    model, tokenizer = tiny_model(), ByteTokenizer()
    free = generate(model, tokenizer, ["The cat"], SamplingParams(temperature=2, max_tokens=40, seed=5))[0]
    stop = free.text[10:13]
    assert len(stop.encode()) >= 3 and stop not in free.text[:12]
    params = SamplingParams(temperature=2, max_tokens=40, seed=5, stop=stop)
    shown = ""
    for event in stream(model, tokenizer, ["The cat"], params):
        shown += event.text
        assert free.text[:10].startswith(shown)
    assert shown == free.text[:10]
    assert (event.finish_reason, event.finish_detail) == ("stop", stop)


def test_stop_tokens_end_the_answer() -> None:
    model, tokenizer = tiny_model(), ByteTokenizer()
    free = generate(model, tokenizer, ["The cat"], GREEDY)[0]
    third = free.token_ids[2]
    first = free.token_ids.index(third)
    params = GREEDY.with_({"stop_token_ids": (third,)})
    stopped = generate(model, tokenizer, ["The cat"], params)[0]
    assert stopped.token_ids == free.token_ids[: first + 1]
    assert stopped.text == tokenizer.decode(free.token_ids[:first])
    assert (stopped.finish_reason, stopped.finish_detail) == ("stop", third)
    for eos in (third, [EOS, third]):  # as generation_config.json writes it
        model.generation_config = {"eos_token_id": eos}
        assert generate(model, tokenizer, ["The cat"], GREEDY.with_({"ignore_eos": False}))[0].token_ids == (
            stopped.token_ids
        )
        assert generate(model, tokenizer, ["The cat"], GREEDY)[0].token_ids == free.token_ids  # ignore_eos


def test_lengths_and_what_ended_them() -> None:
    model, tokenizer = tiny_model(), ByteTokenizer()
    context = model.config.max_positions
    short, full = generate(model, tokenizer, ["ab", "abc"], [GREEDY, GREEDY.with_({"max_tokens": None})])
    assert (len(short.token_ids), short.finish_reason, short.finish_detail) == (12, "length", "max_tokens")
    assert (full.finish_reason, full.finish_detail) == ("length", "context")
    assert full.prompt_tokens == 4 and full.prompt_tokens + len(full.token_ids) == context


def test_a_prompt_that_fills_the_context_is_refused_with_both_numbers() -> None:
    model, tokenizer = tiny_model(), ByteTokenizer()
    context = model.config.max_positions
    assert len(generate(model, tokenizer, [[5] * (context - 1)], GREEDY)[0].token_ids) == 1
    with pytest.raises(InputError, match=rf"prompt 2 has {context + 3} tokens and the context holds {context}"):
        stream(model, tokenizer, ["a", [5] * (context + 3)], GREEDY)  # at the call, before the first token


def test_exactly_one_bos() -> None:
    model = tiny_model()
    for text in ("", "hi"):
        with_bos, without = ByteTokenizer(), ByteTokenizer(adds_bos=False)
        assert engine.prepare(model, with_bos, [text], GREEDY)[0].prompt == [BOS, *text.encode()]
        assert engine.prepare(model, without, [text], GREEDY)[0].prompt == (list(text.encode()) or [BOS])
    assert engine.prepare(model, ByteTokenizer(), [[BOS, 7]], GREEDY)[0].prompt == [BOS, 7]  # ids are taken as they are


def test_log_probabilities_are_those_of_the_model() -> None:
    model, tokenizer = tiny_model(), ByteTokenizer()
    params = SamplingParams(temperature=3, top_k=5, repetition_penalty=1.5, max_tokens=10, seed=2, logprobs=3)
    plain = params.with_({"logprobs": None})
    completion, other = generate(model, tokenizer, ["The cat", "The cat"], [params, plain])
    assert completion.token_ids == other.token_ids  # asking for them changes nothing
    assert other.logprobs is None and other.alternatives is None
    assert completion.logprobs is not None and completion.alternatives is not None
    ids = tokenizer.encode("The cat", add_bos=True) + completion.token_ids
    with torch.inference_mode():
        expected = model(torch.tensor([ids]))[0].log_softmax(-1)[-len(completion.token_ids) - 1 : -1]
    for step, (token, logprob, best) in enumerate(
        zip(completion.token_ids, completion.logprobs, completion.alternatives, strict=True)
    ):
        assert logprob == pytest.approx(expected[step, token].item(), abs=1e-4)
        assert [token for token, _ in best] == expected[step].topk(3).indices.tolist()
        assert [value for _, value in best] == pytest.approx(expected[step].topk(3).values.tolist(), abs=1e-4)


def test_ids_that_the_tokenizer_cannot_write_are_never_drawn() -> None:
    model, tokenizer = tiny_model(), ByteTokenizer()
    with torch.no_grad():
        assert model.head is not None
        model.head.weight[VOCAB:] = model.head.weight[:6] * 100
    for completion in generate(
        model, tokenizer, PROMPTS, [GREEDY.with_({"temperature": heat}) for heat in (0, 1, 5, 99)]
    ):
        assert max(completion.token_ids) < VOCAB


@pytest.mark.parametrize(
    ("prompts", "params", "said"),
    [
        ("text", GREEDY, r"give \[prompt\]"),
        (["a", "b"], [GREEDY], "2 prompts and 1 sampling parameters"),
        ([[]], GREEDY, "empty"),
        ([[-1, 3]], GREEDY, "token id -1"),
        ([[3, 100000]], GREEDY, "token id 100000"),
        (["a"], GREEDY.with_({"logprobs": 10**9}), "logprobs = 1000000000"),
    ],
)
def test_what_cannot_be_answered_is_refused(prompts: object, params: object, said: str) -> None:
    with pytest.raises(InputError, match=said):
        generate(tiny_model(), ByteTokenizer(), prompts, params)


def test_no_prompts_no_answers() -> None:
    assert generate(tiny_model(), ByteTokenizer(), [], GREEDY) == []
