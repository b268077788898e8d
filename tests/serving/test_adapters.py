"""Adapters behind the server: a request's model names one, whatever else is under way."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from pellucid.errors import InputError
from pellucid.inference.engine import Engine
from pellucid.inference.params import SamplingParams
from pellucid.models.adapters import AdapterConfig, adapter_on, adapter_parameters, add_adapter, use_adapter
from pellucid.models.decoder import Decoder
from pellucid.serving.service import Service, Settings
from tests.serving.live import Live, serving
from tests.serving.stand_in import chat_tokenizer, tiny_decoder

GREEDY = {"temperature": 0, "max_tokens": 8, "ignore_eos": True}
NAMES = ("tiny", "poet", "clerk")


def adapted() -> Decoder:
    model = tiny_decoder()
    generator = torch.Generator().manual_seed(2)
    for name in NAMES[1:]:
        add_adapter(model, AdapterConfig(rank=4), name)
        with torch.no_grad():
            for parameter in adapter_parameters(model, name):
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    use_adapter(model, None)
    return model


@pytest.fixture(scope="module")
def live(one_thread: None) -> Iterator[Live]:
    with serving(Engine(adapted(), chat_tokenizer(), num_blocks=40, max_sequences=8, max_tokens_per_step=64)) as live:
        yield live


def test_the_model_and_its_adapters_are_listed(live: Live) -> None:
    found = live.ask("GET", "/v1/models").json["data"]
    assert [(one["id"], one["parent"]) for one in found] == [("tiny", None), ("poet", "tiny"), ("clerk", "tiny")]
    assert live.ask("GET", "/v1/models/poet").json == found[1]
    assert "(did you mean 'poet'?); there is 'tiny', 'poet', 'clerk'" in live.complete("on", model="poets").error
    assert live.ask("GET", "/v1/models/poets").status == live.chat(model="poets").status == 404


def test_each_answers_as_it_does_alone_while_the_others_are_under_way(live: Live) -> None:
    prompts = ["the one in the one", "on"]
    models = {name: adapted() for name in NAMES}
    for name in NAMES[1:]:
        use_adapter(models[name], name)

    def expected(name: str, prompt: str) -> str:
        one = Engine(models[name], chat_tokenizer(), num_blocks=40)
        one.add(chat_tokenizer().encode(prompt), SamplingParams(**GREEDY))
        text = ""
        while one.busy:
            text += "".join(event.text for event in one.step())
        return text

    asked = [(name, prompt) for name in NAMES for prompt in prompts] * 2
    with ThreadPoolExecutor(8) as clients:
        replies = list(clients.map(lambda one: live.complete(one[1], model=one[0], **GREEDY).json, asked))
    assert [reply["model"] for reply in replies] == [name for name, _ in asked]
    assert [reply["choices"][0]["text"] for reply in replies] == [expected(*one) for one in asked]
    assert len({reply["choices"][0]["text"] for reply in replies}) == 6


def test_chats_and_streams(live: Live) -> None:
    whole = {name: live.chat("on", model=name, **GREEDY).json for name in NAMES}
    assert len({one["choices"][0]["message"]["content"] for one in whole.values()}) == 3
    assert live.chat("on", **GREEDY).json["choices"] == whole["tiny"]["choices"]
    for name, one in whole.items():
        parts = live.chat("on", model=name, stream=True, **GREEDY).events
        assert one["model"] == name and {part["model"] for part in parts} == {name}
        text = "".join(part["choices"][0]["delta"].get("content", "") for part in parts)
        assert text == one["choices"][0]["message"]["content"]


@pytest.mark.parametrize("long", [False, True])
def test_embeddings(live: Live, long: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if long:  # in pieces, between the engine's steps
        monkeypatch.setattr("pellucid.inference.embeddings.mean_pooled.__defaults__", (4,))
    for name in NAMES:
        reply = live.ask("POST", "/v1/embeddings", {"input": "the one in the one", "model": name}).json
        with adapter_on(model := adapted(), None if name == "tiny" else name), torch.inference_mode():
            mean = model.hidden(torch.tensor([chat_tokenizer().encode("the one in the one")]))[0].mean(0)
        assert reply["model"] == name
        torch.testing.assert_close(
            torch.tensor(reply["data"][0]["embedding"]), mean / mean.norm(), rtol=1e-4, atol=1e-5
        )


def test_a_constraint_is_understood_for_the_adapter_too(live: Live) -> None:
    pytest.importorskip("llguidance")
    asked = {"constraint": {"choice": ["one", "the"]}, "temperature": 0, "logprobs": 1}
    found = {name: live.complete("on", model=name, **asked).json["choices"][0] for name in NAMES}
    assert {one["text"] for one in found.values()} <= {"one", "the"}
    assert len({one["logprobs"]["token_logprobs"][0] for one in found.values()}) == 3


def test_an_adapter_that_is_always_on_has_the_name_of_the_model() -> None:
    model = adapted()
    use_adapter(model, "poet")
    engine = Engine(model, chat_tokenizer(), num_blocks=8)
    assert Service(engine, Settings(name="mine")).models == ["mine", "clerk"]
    with pytest.raises(InputError, match="the model and an adapter are both called 'clerk'"):
        Service(engine, Settings(name="clerk"))
