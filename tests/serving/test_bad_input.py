"""What is asked wrongly gets a sentence and a status below 500, and the next request works (promise I14)."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.serving.live import Live, serving
from tests.serving.stand_in import tiny_engine

pytestmark = pytest.mark.usefixtures("one_thread")

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with serving(tiny_engine(96), max_answers=16, max_body=2**20) as live:
        yield live
        assert live.chat(max_tokens=2).status == 200


def form(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}


CHAT: list[tuple[dict[str, Any], int, str]] = [
    ({"messages": [{"role": "user", "content": "x" * 200}]}, 400, "and the context holds 96"),
    ({"max_tokens": 0}, 400, "max_tokens = 0 gives no answer"),
    ({"max_tokens": -1}, 400, "max_tokens = -1"),
    ({"max_completion_tokens": 0}, 400, "max_tokens = 0"),
    ({"max_tokens": 1, "max_completion_tokens": 1}, 400, "give one of them"),
    ({"max_tokens": 1.5}, 400, "max_tokens = 1.5"),
    ({"temperature": -0.1}, 400, "temperature = -0.1"),
    ({"temperature": "hot"}, 400, "temperature = 'hot'"),
    ({"model": "tinny"}, 404, "did you mean 'tiny'?"),
    ({"model": 7}, 400, "model = 7"),
    ({"seed": 2**70}, 400, "seed"),
    ({"seed": -1}, 400, "seed = -1"),
    ({"logprobs": True, "top_logprobs": 10**9}, 400, "top_logprobs = 1000000000"),
    ({"top_logprobs": 2}, 400, "top_logprobs needs 'logprobs'"),
    ({"n": 0}, 400, "n = 0"),
    ({"n": 17}, 400, "17 answers at once, and the server takes 16"),
    ({"n": 10**9}, 400, "n = 1000000000"),
    ({"stop": [""]}, 400, "an empty stop string"),
    ({"stop": ["x"] * 2000}, 400, "2000 stop strings"),
    ({"stop": 3}, 400, "stop: expected a text, or a list of texts"),
    ({"logit_bias": {"5": 101}}, 400, "101"),
    ({"logit_bias": {"five": 1}}, 400, "logit_bias"),
    ({"logit_bias": {"999999": 1}}, 400, "999999"),
    ({"temprature": 1}, 400, "there is no field 'temprature' here (did you mean 'temperature'?)"),
    ({"functions": []}, 400, "there is no field 'functions'"),
    ({"stream_options": {"include_usage": True}}, 400, "go with a stream only"),
    ({"response_format": {"type": "json_schema"}}, 400, "'json_schema' goes with"),
    ({"response_format": {"type": "yaml"}}, 400, "response_format.type = 'yaml'"),
    ({"tool_choice": "required"}, 400, "tool_choice"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, 400, "tools.0.function.name"),
    ({"tools": [{"type": "function", "function": {"name": "f", "strict": True}}]}, 400, "strict"),
    ({"messages": []}, 400, "give at least one message"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, 400, "there is no role 'wizard'"),
    ({"messages": [{"role": "user"}]}, 400, "'content' is missing"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, 400, "'image_url'"),
    ({"messages": [{"role": "user", "content": "x", "mood": "good"}]}, 400, "messages.0.mood"),
    ({"messages": "hi"}, 400, "messages = 'hi'"),
    ({"chat_template_kwargs": {"tokenizer": 1}}, 400, "tokenizer cannot be set here"),
    ({"constraint": {"regex": "(", "choice": ["a"]}}, 400, "one of"),
    ({"constraint": {"regex": "("}}, 400, "the regex cannot be used"),
    ({"constraint": {"grammar": "start: nothing"}}, 400, "the grammar cannot be used"),
    ({"constraint": {"choice": ["x" * 9] * 9000, "regex": "x"}}, 400, "...: a constraint is one of"),
    ({"constraint": {"choice": []}}, 400, "a choice needs at least one text"),
    ({"response_format": form({"type": "object", "properties": {"a": False}, "required": ["a"]})}, 400, "json_schema"),
    ({"response_format": form({"type": "object", "wishes": 7, "minProperties": "x"})}, 400, "json_schema"),
]  # fmt: skip

COMPLETIONS: list[tuple[dict[str, Any], int, str]] = [
    ({}, 400, "the field 'prompt' is missing"),
    ({"prompt": []}, 400, "empty list"),
    ({"prompt": [[]]}, 400, "the prompt is empty"),
    ({"prompt": [1, "a"]}, 400, "prompt: expected a text, a list of texts, a list of token ids"),
    ({"prompt": [5, 100_000]}, 400, "100000"),
    ({"prompt": [-1]}, 400, "-1"),
    ({"prompt": "x" * 96}, 400, "the prompt has 96 tokens and the context holds 96"),
    ({"prompt": ["a", "x" * 96]}, 400, "prompt 2 has 96 tokens"),
    ({"prompt": ["a"] * 17}, 400, "17 answers at once"),
    ({"prompt": "a", "suffix": "b"}, 400, "suffix"),
    ({"prompt": "a", "logprobs": 21}, 400, "logprobs = 21"),
    ({"prompt": "a", "max_tokens": 0}, 400, "max_tokens = 0"),
    ({"prompt": "a", "n": 3, "best_of": 2}, 400, "best_of = 2 is less than n = 3"),
    ({"prompt": "a", "best_of": 2, "stream": True}, 400, "best_of is known only at the end"),
    ({"prompt": "a", "top_p": 0}, 400, "top_p = 0"),
    ({"prompt": "a", "messages": MESSAGES}, 400, "there is no field 'messages'"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "status", "said"), CHAT, ids=lambda value: str(value)[:50])
@pytest.mark.parametrize("stream", [False, True])
def test_chats(live: Live, fields: dict[str, Any], status: int, said: str, stream: bool) -> None:
    body = {"messages": MESSAGES, "stream": stream, **fields}
    if "stream_options" in fields:
        del body["stream"]
    reply = live.ask("POST", "/v1/chat/completions", body)
    assert reply.status == status, reply.body
    assert said in reply.error


@pytest.mark.parametrize(("body", "status", "said"), COMPLETIONS, ids=lambda value: str(value)[:50])
def test_completions(live: Live, body: dict[str, Any], status: int, said: str) -> None:
    reply = live.ask("POST", "/v1/completions", body)
    assert reply.status == status, reply.body
    assert said in reply.error


def test_extremes_that_are_answered(live: Live) -> None:
    for fields in (
        {"temperature": 1e-6},
        {"temperature": 1e6},
        {"temperature": 1e-300},
        {"max_tokens": 2**62},
        {"frequency_penalty": 1e6, "presence_penalty": -1e6, "repetition_penalty": 1e6},
        {"top_k": 2**31 - 1, "top_p": 1e-9, "min_p": 1},
        {"stop": [f"stop {number}" for number in range(1000)]},
        {"seed": 2**63 - 1},
        {"user": "me", "temperature": None, "stop": None},
    ):
        reply = live.chat(**{"max_tokens": 3, **fields})
        assert reply.status == 200, (fields, reply.body)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "the body is not JSON"),
        (b"{", "the body is not JSON"),
        (b'{"messages": [}', "the body is not JSON"),
        (b"\xff\xfe", "the body is not JSON"),
        (b'{"messages": [{"role": "user", "content": "\xc3\x28"}]}', "the body is not JSON"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "the body is not JSON"),
        (b"[]", "object"),
        (b"null", "object"),
        (b"7", "object"),
        (b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}', "temperature"),
        (b'{"messages": [{"role": "user", "content": "x"}], "temperature": Infinity}', "temperature"),
        (b'{"messages": [{"role": "user", "content": "x"}], "temperature": 1e999}', "temperature"),
        (b'{"messages": [{"role": "user", "content": "x"}], "seed": ' + b"9" * 5000 + b"}", ""),
        (b"[" * 100_000, "the body is not JSON"),
        (b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", ""),
        (b"{" + b",".join(b'"a%d": 1' % number for number in range(50_000)) + b"}", "50001 mistakes"),
        (b'{"prompt": [' + b",".join([b"true"] * 100_000) + b"]}", ""),
    ],
    ids=lambda value: repr(value)[:40],
)
@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/tokenize", "/detokenize"]
)
def test_bodies_that_are_none(live: Live, path: str, body: bytes, said: str) -> None:
    reply = live.ask("POST", path, body)
    assert reply.status == 400
    if path == "/v1/chat/completions":
        assert said in reply.error


def test_a_body_of_100_mb_is_refused_and_the_connection_lives(live: Live) -> None:
    connection = live.connect()
    live.send(connection, "POST", "/v1/chat/completions", b" " * 100_000_000)
    response = connection.getresponse()
    assert response.status == 413
    assert json.loads(response.read())["error"]["code"] == "request_too_large"
    live.send(connection, "GET", "/health")
    assert connection.getresponse().status == 200
    connection.close()


def test_a_large_body_of_unknown_length_is_refused(live: Live) -> None:
    chunk = b"%x\r\n" % 2**16 + b" " * 2**16 + b"\r\n"
    with socket.create_connection(("127.0.0.1", live.port), timeout=10) as connection:
        head = b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head + chunk * 40 + b"0\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_ids_that_are_none(live: Live) -> None:
    assert live.ask("POST", "/detokenize", {"tokens": [10**9]}).status == 400
    assert live.ask("POST", "/tokenize", {"prompt": "a", "messages": MESSAGES}).status == 400
    assert live.ask("POST", "/tokenize", {}).status == 400


def test_places_that_are_not_there(live: Live) -> None:
    for method, path, status in (
        ("GET", "/", 404),
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/v1/images", 404),
        ("GET", "/v1/models/nobody", 404),
        ("GET", "/v1/models/a/b", 404),
        ("GET", "/../../etc/passwd", 404),
    ):
        reply = live.ask(method, path)
        assert reply.status == status and reply.error


def test_what_is_no_http(live: Live) -> None:
    for garbage in (
        b"\x00\x01\x02\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n",
    ):
        with socket.create_connection(("127.0.0.1", live.port), timeout=10) as connection:
            connection.sendall(garbage)
    assert live.ask("GET", "/health").status == 200


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from([2**70, 1e-6, 1e6, "(", ""]),
    lambda one: st.lists(one, max_size=3) | st.dictionaries(st.text(max_size=8), one, max_size=3),
    max_leaves=6,
)


def fields_of(path: str) -> list[str]:
    from pellucid.serving import api

    asked = {
        "/v1/completions": api.CompletionAsked,
        "/v1/chat/completions": api.ChatAsked,
        "/v1/embeddings": api.EmbeddingAsked,
    }[path]
    return sorted(asked.model_fields)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/embeddings"])
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_value_in_any_field(live: Live, path: str, data: st.DataObject) -> None:
    base: dict[str, Any] = {
        "/v1/completions": {"prompt": "a", "max_tokens": 2},
        "/v1/chat/completions": {"messages": MESSAGES, "max_tokens": 2},
        "/v1/embeddings": {"input": "a"},
    }[path]
    names = st.sampled_from(fields_of(path))
    body = {**base, **data.draw(st.dictionaries(names, VALUES, min_size=1, max_size=3))}
    reply = live.ask("POST", path, body)
    assert reply.status in (200, 400, 404), (body, reply.body)
    if reply.status != 200:
        assert reply.error
