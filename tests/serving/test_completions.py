"""/v1/completions: what it answers, in OpenAI's shapes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pellucid.inference.generate import generate
from pellucid.inference.params import SamplingParams
from tests.serving.live import Live, serving
from tests.serving.stand_in import chat_tokenizer, tiny_decoder, tiny_engine

pytestmark = pytest.mark.usefixtures("one_thread")

GREEDY = {"temperature": 0, "max_tokens": 6, "ignore_eos": True}


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with serving(tiny_engine()) as live:
        yield live


def test_it_is_the_reference_generators_answer(live: Live) -> None:
    answer = live.complete("the one", **GREEDY).json
    (expected,) = generate(tiny_decoder(), chat_tokenizer(), ["the one"], SamplingParams(**GREEDY))
    assert answer["object"] == "text_completion" and answer["model"] == "tiny"
    assert answer["choices"] == [
        {"index": 0, "text": expected.text, "logprobs": None, "finish_reason": "length", "finish_detail": "max_tokens"}
    ]
    assert answer["usage"] == {
        "prompt_tokens": expected.prompt_tokens,
        "completion_tokens": 6,
        "total_tokens": expected.prompt_tokens + 6,
    }


def test_a_stream_joined_is_the_whole(live: Live) -> None:
    asked = {**GREEDY, "logprobs": 3, "echo": True, "n": 2, "temperature": 1, "seed": 5, "max_tokens": 20}
    whole = live.complete(["the one", "in"], **asked).json
    reply = live.complete(["the one", "in"], **asked, stream=True, stream_options={"include_usage": True})
    assert reply.headers["content-type"].startswith("text/event-stream")
    parts = reply.events
    assert all(part["usage"] is None for part in parts[:-1]) and parts[-1]["choices"] == []
    assert parts[-1]["usage"] == whole["usage"]
    assert len({part["id"] for part in parts}) == 1
    for index in range(4):
        own = [choice for part in parts for choice in part["choices"] if choice["index"] == index]
        (expected,) = [choice for choice in whole["choices"] if choice["index"] == index]
        assert "".join(one["text"] for one in own) == expected["text"]
        assert [one["finish_reason"] for one in own] == [None] * (len(own) - 1) + [expected["finish_reason"]]
        columns = {name: [entry for one in own for entry in one["logprobs"][name]] for name in expected["logprobs"]}
        for name in ("tokens", "text_offset"):
            assert columns[name] == expected["logprobs"][name]
        # The second request found its prompts in the prefix cache: other products, other roundings.
        for name in ("token_logprobs", "top_logprobs"):
            for one, other in zip(columns[name], expected["logprobs"][name], strict=True):
                assert one == (other if other is None else pytest.approx(other, abs=1e-4))


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_a_prompt_is_scored_as_lm_eval_asks(live: Live, max_tokens: int) -> None:
    """lm-evaluation-harness' local-completions: ids in, `echo`, `logprobs`, and the last token left out."""
    tokenizer = chat_tokenizer()
    prompts = [tokenizer.encode(text) for text in ("the one in the one", "on")]
    asked = {"max_tokens": max_tokens, "echo": True, "logprobs": 1, "temperature": 0, "seed": 1}
    choices = live.complete(prompts, **asked).json["choices"]
    for ids, choice in zip(prompts, sorted(choices, key=lambda one: one["index"]), strict=True):
        chances = reference_chances(ids)
        scored = choice["logprobs"]
        assert choice["text"].startswith(tokenizer.decode(ids)) and (
            max_tokens or choice["text"] == tokenizer.decode(ids)
        )
        assert len(scored["tokens"]) == len(ids) + max_tokens
        assert scored["token_logprobs"][0] is None and scored["top_logprobs"][0] is None
        for place, token in enumerate(ids[1:], 1):
            assert scored["token_logprobs"][place] == pytest.approx(chances[place - 1][token], abs=1e-4)
            assert max(scored["top_logprobs"][place].values()) == pytest.approx(max(chances[place - 1]), abs=1e-4)
        for token, offset, following in zip(
            scored["tokens"], scored["text_offset"], scored["text_offset"][1:], strict=False
        ):
            assert choice["text"][offset:following] == token or token.startswith("bytes:")


def reference_chances(ids: list[int]) -> list[list[float]]:
    import torch

    with torch.inference_mode():
        chances: list[list[float]] = tiny_decoder()(torch.tensor([ids]))[0].log_softmax(-1).tolist()
    return chances


def test_best_of_gives_the_likeliest(live: Live) -> None:
    asked = {**GREEDY, "temperature": 1.5, "seed": 3, "logprobs": 0}
    drawn = live.complete("the", **asked, n=5).json["choices"]
    best = live.complete("the", **asked, n=2, best_of=5).json
    ranked = sorted(drawn, key=lambda one: -sum(one["logprobs"]["token_logprobs"]))
    assert [one["text"] for one in best["choices"]] == [one["text"] for one in ranked[:2]]
    assert [one["index"] for one in best["choices"]] == [0, 1]
    plain = live.complete("the", **{**asked, "logprobs": None}, n=1, best_of=5).json
    assert plain["choices"][0]["text"] == ranked[0]["text"] and plain["choices"][0]["logprobs"] is None


def test_seeds_and_stops(live: Live) -> None:
    asked = {"temperature": 2, "max_tokens": 30, "ignore_eos": True}
    one, same, other = (live.complete("on", **asked, seed=seed).json["choices"][0]["text"] for seed in (7, 7, 8))
    assert one == same != other
    stop = one[10:12]
    stopped = live.complete("on", **asked, seed=7, stop=[stop]).json["choices"][0]
    assert stopped["text"] == one[: one.index(stop)] and stopped["finish_reason"] == "stop"
    thousand = [f"never {number}" for number in range(1000)]
    assert live.complete("on", **asked, seed=7, stop=thousand).json["choices"][0]["text"] == one


def test_defaults_are_the_models_then_openais(live: Live) -> None:
    assert live.complete("on", ignore_eos=True).json["usage"]["completion_tokens"] == 16
    (card,) = live.ask("GET", "/v1/models").json["data"]
    assert card["id"] == "tiny" and card["max_model_len"] == 256
    assert card["sampling"]["temperature"] == {"value": 1.0, "source": "built-in"}
    settings = {"flags": {"top_k": 3}, "generation_config": {"temperature": 0.5, "top_k": 7, "max_new_tokens": 2}}
    with serving(tiny_engine(), **settings) as other:
        sampling = other.ask("GET", "/v1/models/tiny").json["sampling"]
        assert sampling["temperature"] == {"value": 0.5, "source": "generation_config.json"}
        assert sampling["top_k"] == {"value": 3, "source": "flag"}
        assert other.complete("on", ignore_eos=True).json["usage"]["completion_tokens"] == 2
        assert other.complete("on", ignore_eos=True, max_tokens=4).json["usage"]["completion_tokens"] == 4


def test_tokens_and_back(live: Live) -> None:
    text = "the one 12 <|im_end|> é"
    tokens = live.ask("POST", "/tokenize", {"prompt": text, "return_token_strs": True}).json
    assert tokens["tokens"] == chat_tokenizer().encode(text)  # no control token, whatever the text spells
    assert tokens["count"] == len(tokens["tokens"]) == len(tokens["token_strs"])
    assert live.ask("POST", "/detokenize", {"tokens": tokens["tokens"]}).json == {"prompt": text}
    turns = [{"role": "user", "content": "hi"}]
    chat = live.ask("POST", "/tokenize", {"messages": turns}).json["tokens"]
    assert chat == chat_tokenizer().apply_chat_template(turns, add_generation_prompt=True).ids


def test_beams_are_those_of_the_engine(live: Live) -> None:
    asked = {"max_tokens": 6, "beam_width": 4, "n": 3, "length_penalty": 0.5, "early_stopping": "never"}
    choices = live.complete("the one", **asked, logprobs=0).json["choices"]
    engine = tiny_engine()
    engine.add(chat_tokenizer().encode("the one"), SamplingParams(**asked))
    events = []
    while engine.busy:
        events += engine.step()
    for index in range(3):
        assert choices[index]["text"] == "".join(event.text for event in events if event.index == index)
    sums = [sum(choice["logprobs"]["token_logprobs"]) / len(choice["logprobs"]["tokens"]) ** 0.5 for choice in choices]
    assert sums == sorted(sums, reverse=True)
    for fields, said in (
        ({"stream": True}, "known only at the end"),
        ({"n": 5}, "n = 5 is more than beam_width = 4"),
        ({"stop": ["x"]}, "without stop"),
        ({"beam_width": 9}, "the engine runs 8 at once"),
        ({"echo": True, "logprobs": 0}, "beam search scores no prompt: leave out 'echo', 'logprobs' or 'beam_width'"),
    ):
        reply = live.complete("on", **{**asked, **fields})
        assert reply.status == 400 and said in reply.error
