"""The clients that measure a server measure what is there."""

from __future__ import annotations

import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pellucid.errors import InputError, PellucidError
from pellucid.serving.bench import Bench, Level, Reply, percentiles
from tests.serving.live import serving
from tests.serving.stand_in import Scripted, tiny_engine

MODELS = b'{"data": [{"id": "x"}]}'

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_numbers_are_those_of_the_requests() -> None:
    replies = [Reply([10.0, 10.5, 10.6, 10.8], 7, 3), Reply([10.0, 11.0], 5, 1), Reply([10.0], error="429: full")]
    found = Level(2, replies, seconds=4.0).summary()
    assert found["requests"] == 3 and found["errors"] == 1 and found["concurrency"] == 2
    assert found["prompt_tokens_per_second"] == 3.0 and found["answer_tokens_per_second"] == 1.0
    assert found["time_to_first_token"]["p50"] == pytest.approx(0.75)
    assert found["time_between_tokens"]["p50"] == pytest.approx(0.15)
    assert found["end_to_end"]["p99"] == pytest.approx(0.998)
    assert percentiles([]) is None and percentiles([2.0]) == {"p50": 2.0, "p95": 2.0, "p99": 2.0}
    assert percentiles([float(n) for n in range(101)]) == {"p50": 50.0, "p95": 95.0, "p99": 99.0}


def test_a_live_server_is_measured() -> None:
    engine = tiny_engine()
    done = []
    with serving(engine, keys=("secret",)) as live:
        bench = Bench(live.url, key="secret")
        assert bench.model == "tiny" and bench.exact
        before = engine.tokens_drawn
        level = bench.level(3, requests=7, prompt_tokens=40, answer_tokens=9, done=lambda: done.append(1))
        assert len(done) == 7 and not [one.error for one in level.replies if one.error]
        assert [one.answer_tokens for one in level.replies] == [9] * 7
        assert all(30 <= one.prompt_tokens <= 55 for one in level.replies)
        assert all(len(one.times) == 10 and one.times == sorted(one.times) for one in level.replies)
        assert engine.tokens_drawn - before == 63 and engine.stats()["prefix_hits"] == 0
        slow = bench.level(8, requests=6, prompt_tokens=8, answer_tokens=2, rate=20.0)
        assert slow.seconds > 0.1 and slow.summary()["errors"] == 0
        assert "pellucid_engine_slot_steps_taken_total" in bench.text("/metrics")
        assert Bench(live.url.removesuffix("/v1"), key="secret").model == "tiny"
        with pytest.raises(PellucidError, match="gave status 401"):
            Bench(live.url)


def test_no_prompt_is_asked_twice() -> None:
    engine = tiny_engine()
    with serving(engine) as live:
        for bench in (Bench(live.url), Bench(live.url)):
            for _ in range(2):
                found = bench.level(2, requests=4, prompt_tokens=60, answer_tokens=2)
                assert found.summary()["errors"] == 0
        assert engine.stats()["prefix_hits"] == 0


@pytest.mark.parametrize(
    ("models", "stream", "said"),
    [
        (b"<html>", b"", "lists no model"),
        (b'{"data": []}', b"", "lists no model"),
        (MODELS, b'data: {"error": "full"}\n\n', "first request: full"),
        (MODELS, b'data: {"usage": {"prompt_tokens": 1}}\n\n', "first request: KeyError"),
        (MODELS, b"data: 5\n\n", "first request: TypeError"),
        (MODELS, b'data: {"usage": {"prompt_tokens": 0, "completion_tokens": 2}}\n\n', "counts no tokens"),
    ],
)
def test_a_server_of_another_maker_that_answers_otherwise(models: bytes, stream: bytes, said: str) -> None:
    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(models)

        def do_POST(self) -> None:
            self._send(stream)

        def _send(self, body: bytes) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(PellucidError, match=said):
            Bench(f"http://127.0.0.1:{server.server_port}")
        server.shutdown()


def test_errors_are_counted() -> None:
    with serving(Scripted("the one", seconds=0.01), max_answers=1) as live:
        bench = Bench(live.url)
        found = bench.level(4, requests=12, prompt_tokens=4, answer_tokens=5).summary()
        assert 0 < found["errors"] < 12


def test_what_is_no_server() -> None:
    with pytest.raises(InputError, match="give an address such as"):
        Bench("localhost:8000")
    with pytest.raises(InputError, match="give an address such as"):
        Bench("http://localhost:80000")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(PellucidError, match="no server answers at"):
            Bench(f"http://127.0.0.1:{taken.getsockname()[1]}")
