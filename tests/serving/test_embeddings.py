"""/v1/embeddings: means of hidden states, in OpenAI's shapes, while others are answered."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from pellucid.inference.embeddings import mean_pooled
from tests.serving.live import Live, serving, until
from tests.serving.stand_in import chat_tokenizer, tiny_decoder, tiny_engine

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = ["the one", "on", "the one and only in the one", "é"]


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with serving(tiny_engine(), max_answers=4) as live:
        yield live


def expected(text: str) -> list[float]:
    with torch.inference_mode():
        hidden = tiny_decoder().hidden(torch.tensor([chat_tokenizer().encode(text)]))[0]
    mean = hidden.mean(0)
    vector: list[float] = (mean / mean.norm()).tolist()
    return vector


def embed(live: Live, given: Any, **fields: Any) -> Any:
    reply = live.ask("POST", "/v1/embeddings", {"input": given, **fields})
    assert reply.status == 200, reply.body
    return reply.json


def test_one_text_and_many_and_their_ids(live: Live) -> None:
    answer = embed(live, TEXTS)
    assert answer["object"] == "list" and answer["model"] == "tiny"
    ids = [chat_tokenizer().encode(text) for text in TEXTS]
    assert answer["usage"] == {"prompt_tokens": sum(map(len, ids)), "total_tokens": sum(map(len, ids))}
    for index, (text, one) in enumerate(zip(TEXTS, answer["data"], strict=True)):
        assert one["object"] == "embedding" and one["index"] == index
        assert one["embedding"] == pytest.approx(expected(text), abs=1e-5)
    for same in (embed(live, ids), {"data": [embed(live, one)["data"][0] for one in ids]}):
        for one, other in zip(same["data"], answer["data"], strict=True):
            assert one["embedding"] == pytest.approx(other["embedding"], abs=1e-5)
    assert embed(live, TEXTS[0])["data"][0]["embedding"] == pytest.approx(expected(TEXTS[0]), abs=1e-5)


def test_base64_and_fewer_dimensions(live: Live) -> None:
    [one] = embed(live, TEXTS[0], encoding_format="base64")["data"]
    assert np.frombuffer(base64.b64decode(one["embedding"]), "<f4") == pytest.approx(expected(TEXTS[0]), abs=1e-5)
    [few] = embed(live, TEXTS[0], dimensions=5)["data"]
    first = np.array(expected(TEXTS[0])[:5])
    assert few["embedding"] == pytest.approx(first / np.linalg.norm(first), abs=1e-5)


@pytest.mark.parametrize("piece", [1, 3, 7, 64])
def test_the_pieces_of_the_work_change_nothing(piece: int) -> None:
    texts = [[1, 2, 3], [5], list(range(20, 50)), [7, 8], [9] * 7, [3, 2, 1]]
    work = mean_pooled(tiny_decoder(), texts, piece)
    steps = 0
    while True:
        try:
            next(work)
            steps += 1
        except StopIteration as end:
            vectors = end.value
            break
    assert steps >= sum(map(len, texts)) / piece
    for text, vector in zip(texts, vectors, strict=True):
        with torch.inference_mode():
            mean = tiny_decoder().hidden(torch.tensor([text]))[0].mean(0)
        torch.testing.assert_close(vector, mean / mean.norm(), atol=1e-5, rtol=1e-4)


def test_what_has_no_vector_is_refused(live: Live) -> None:
    for body, said in (
        ({}, "the field 'input' is missing"),
        ({"input": []}, "input is an empty list"),
        ({"input": [[]]}, "the input is empty"),
        ({"input": [[5], [999]]}, "input 2 has the token id 999, and the vocabulary ends at 271"),
        ({"input": [-1]}, "-1"),
        ({"input": [5] * 257}, "the input has 257 tokens and the context holds 256"),
        ({"input": ["a"] * 2049}, "2049 inputs"),
        ({"input": "a", "dimensions": 33}, "dimensions = 33: the model's vectors have 32"),
        ({"input": "a", "dimensions": 0}, "dimensions = 0"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format = 'hex'"),
        ({"input": "a", "temperature": 1}, "there is no field 'temperature'"),
    ):
        reply = live.ask("POST", "/v1/embeddings", body)
        assert reply.status == 400 and said in reply.error
    assert live.ask("POST", "/v1/embeddings", {"input": "a", "model": "other"}).status == 404
    assert len(embed(live, [5] * 256)["data"]) == 1


def test_a_text_that_the_memory_does_not_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pellucid.inference.room.free_memory", lambda _: 200 * 1024)
    with serving(tiny_engine(4096)) as live:  # 2 layers x 2 heads x 8 numbers of 4 bytes, keys and values: 256 bytes
        reply = live.ask("POST", "/v1/embeddings", {"input": [5] * 600})
        assert reply.status == 400 and "take 0 MiB, more than half of the 0 MiB that are free" in reply.error
        assert live.ask("POST", "/v1/embeddings", {"input": [5] * 384}).status == 200


def test_streams_go_on_meanwhile() -> None:
    """Between any two pieces of a long input, every stream gets its next token."""
    engine = tiny_engine(4096)
    with serving(engine) as live:
        connection = live.connect()
        live.send(
            connection,
            "POST",
            "/v1/completions",
            {"prompt": "on", "stream": True, "max_tokens": 4000, "ignore_eos": True},
        )
        until(lambda: engine.steps > 3)
        assert connection.getresponse().read(20)
        before = engine.steps
        embed(live, [[5] * 256 for _ in range(30)])
        assert engine.steps - before >= 25
        connection.close()


def test_a_client_that_goes_away_ends_the_work(live: Live) -> None:
    connection = live.connect()
    live.send(connection, "POST", "/v1/embeddings", {"input": [[5] * 256 for _ in range(2000)]})
    until(lambda: bool(live.service.loop._jobs) or live.service.loop.under_way == 1)
    connection.close()
    until(lambda: live.service.loop.under_way == 0 and not live.service.loop._jobs)
    assert embed(live, "on")["data"]


def test_the_real_client(live: Live) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=live.url, api_key="none", max_retries=0)
    answer = client.embeddings.create(model="tiny", input=TEXTS)  # asks for base64 by itself
    for text, one in zip(TEXTS, answer.data, strict=True):
        assert one.embedding == pytest.approx(expected(text), abs=1e-5)
    assert client.embeddings.create(model="tiny", input="on", encoding_format="float", dimensions=3).data[0].embedding


def test_a_constraint_is_understood_in_a_thread_of_its_own(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llguidance")
    engine = live.service.engine
    prepare, go_on, threads = engine.prepare, threading.Event(), []

    def slowly(prompt: Any, params: Any, *, in_chat: bool, adapter: str | None) -> Any:
        threads.append(threading.current_thread().name)
        if params.constraint is not None:
            go_on.wait(20)
        return prepare(prompt, params, in_chat=in_chat)

    monkeypatch.setattr(engine, "prepare", slowly)
    replies = []
    asked = {"constraint": {"choice": ["the", "on"]}, "max_tokens": 9}
    waiting = threading.Thread(target=lambda: replies.append(live.complete("on", **asked)))
    waiting.start()
    until(lambda: bool(threads))
    assert live.complete("on", max_tokens=3).status == 200  # others are answered while it is not understood yet
    go_on.set()
    waiting.join(20)
    assert replies[0].json["choices"][0]["text"] in ("the", "on")
    assert threads[0] != "engine" and threads[1] == "engine"
