"""Clients that leave, wait, or come in thousands; long prompts; an engine that fails; a server that is told to stop."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Generator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pellucid.errors import PellucidError
from pellucid.inference.params import SamplingParams
from pellucid.serving.errors import ApiError
from pellucid.serving.loop import Ask, EngineLoop, Job, Pending
from pellucid.serving.metrics import Metrics
from tests.serving.live import Live, serving, until
from tests.serving.stand_in import Event, Scripted

ENDLESS = "the one " * 1000
CHAT = {"messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_answer_at_once(stream: bool) -> None:
    engine = Scripted(ENDLESS, seconds=0.01)
    with serving(engine) as live:
        connection = live.connect()
        live.send(connection, "POST", "/v1/chat/completions", {**CHAT, "stream": stream, "n": 3})
        until(lambda: engine.busy and engine.steps > 5)
        if stream:
            assert connection.getresponse().read(200)
        connection.sock.shutdown(socket.SHUT_RDWR)
        connection.close()
        until(lambda: live.service.loop.under_way == 0)
        steps = engine.steps
        until(lambda: not engine.busy)
        assert engine.steps - steps <= 2 and engine.aborted == 1
        until(lambda: live.service.loop.stats["blocks_used"] == 0)


def test_a_client_that_leaves_while_it_waits_is_never_served() -> None:
    with serving(Scripted(ENDLESS, seconds=0.02)) as live:
        for _ in range(20):
            connection = live.connect()
            live.send(connection, "POST", "/v1/chat/completions", {**CHAT, "stream": True})
            connection.close()


def test_a_slow_reader_keeps_nobody_waiting() -> None:
    with serving(Scripted(ENDLESS)) as live:
        slow = socket.socket()
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        slow.connect(("127.0.0.1", live.port))
        body = b'{"prompt": "a", "stream": true, "max_tokens": 4000, "logprobs": 20}'
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
        slow.sendall(head + body)
        assert slow.recv(16)
        until(lambda: not live.engine.busy)  # its answer is finished, though it has read nothing
        assert live.chat(max_tokens=3).status == 200
        slow.close()


def test_the_queue_has_an_end() -> None:
    with serving(Scripted(ENDLESS, seconds=0.01), max_answers=4) as live:
        waiting = []
        for _ in range(2):
            connection = live.connect()
            live.send(connection, "POST", "/v1/chat/completions", {**CHAT, "n": 2, "max_tokens": 100})
            waiting.append(connection)
        until(lambda: live.service.loop.under_way == 4)
        reply = live.chat()
        assert reply.status == 429 and reply.headers["retry-after"] == "1" and "4 answers are under way" in reply.error
        assert live.chat(stream=True).status == 429
        assert live.ask("GET", "/health").status == 200
        for connection in waiting:
            assert connection.getresponse().status == 200
            connection.close()
        until(lambda: live.service.loop.under_way == 0)
        assert live.chat(max_tokens=1).status == 200


def test_prompts_that_are_being_read_are_in_the_queue_too(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, go_on = Scripted("x"), threading.Event()
    encode = engine.tokenizer.encode

    def slowly(text: str, **options: bool) -> list[int]:
        go_on.wait(20)
        return encode(text, **options)

    monkeypatch.setattr(engine.tokenizer, "encode", slowly)
    with serving(engine, max_answers=1) as live:
        first = threading.Thread(target=live.complete)
        first.start()
        until(lambda: live.service.loop.under_way == 1)
        assert live.ask("GET", "/health").status == 200
        assert live.complete().status == 429 and not engine.busy
        go_on.set()
        first.join()
        assert live.complete().status == 200


def test_ten_thousand_requests_at_once() -> None:
    """All but those that fit are refused at once, none is lost, nothing is left behind."""

    async def one(loop: EngineLoop) -> str:
        try:
            with loop.room(1):
                async with loop.ask([Ask([1, 2], SamplingParams(max_tokens=3))]) as events:
                    return "".join([event.text async for _, event in events])
        except ApiError as error:
            return str(error.status)

    async def all_of_them() -> list[str]:
        engine = Scripted("the one")
        loop = EngineLoop(engine, Metrics(dict), max_answers=100, timeout=60)
        loop.start()
        results = await asyncio.gather(*(one(loop) for _ in range(10_000)))
        await loop.stop()
        assert loop.under_way == 0 and not engine.busy and engine.added == 100
        return results

    results = asyncio.run(all_of_them())
    assert results.count("429") == 9_900
    assert len({result for result in results if result != "429"}) == 1


@pytest.mark.slow
def test_ten_thousand_requests_over_http() -> None:
    with serving(Scripted("the one", seconds=0.01), max_answers=32) as live:
        statuses: list[int] = []

        def client() -> None:
            for _ in range(200):
                statuses.append(live.chat(max_tokens=3).status)

        clients = [threading.Thread(target=client) for _ in range(50)]
        for one in clients:
            one.start()
        for one in clients:
            one.join()
    assert len(statuses) == 10_000 and set(statuses) == {200, 429}


def test_a_request_that_takes_too_long() -> None:
    with serving(Scripted(ENDLESS, seconds=0.01), timeout=1) as live:
        reply = live.chat()
        assert reply.status == 408 and reply.headers["x-should-retry"] == "false" and "after 1 s" in reply.error
        lines = live.chat(stream=True).body.decode().strip().split("\n\n")
        assert '"code":"timeout"' in lines[-1] and lines[-1].startswith("data: ")
        assert live.chat(max_tokens=2).status == 200


def test_a_long_prompt_does_not_freeze_the_others() -> None:
    """While a text of megabytes becomes tokens, /health answers again and again."""
    with serving(Scripted("x")) as live:
        done = threading.Event()

        def long() -> None:
            reply = live.complete("the one and only, " * 300_000)
            assert reply.status == 400 and "the context holds" in reply.error
            done.set()

        thread = threading.Thread(target=long)
        thread.start()
        answered = 0
        while not done.is_set():
            assert live.ask("GET", "/health").status == 200
            answered += not done.is_set()
        thread.join()
        assert answered


class Reading(Scripted):
    """Understands a constraint only once it is told to."""

    go_on = threading.Event()

    def prepare(self, prompt: Any, params: SamplingParams, *, in_chat: bool = False, adapter: str | None = None) -> Any:
        if params.constraint is not None:
            self.go_on.wait(20)
        return super().prepare(prompt, params, in_chat=in_chat)


def test_a_constraint_that_takes_too_long() -> None:
    engine = Reading("x")
    with serving(engine, timeout=0.3) as live:
        reply = live.chat(constraint={"choice": ["a"]})
        assert reply.status == 408 and live.chat().status == 200
        engine.go_on.set()


def test_what_is_asked_while_the_server_stops_ends_with_an_error() -> None:
    async def asked() -> list[Any]:
        loop = EngineLoop(Reading("x"), Metrics(dict), max_answers=9, timeout=60)
        loop.start()
        loop._commands.put(None)
        await asyncio.to_thread(loop._thread.join)
        loop._commands.put(partial(loop._add, late := Pending([Ask([1], SamplingParams())], asyncio.Queue(), 0.0)))
        loop._commands.put(partial(loop._jobs.append, job := Job(work(1, []), loop._home.create_future())))
        await loop.stop()
        await asyncio.sleep(0)
        assert await late.inbox.get() is None
        for refused in (loop.compute(work(1, [])), loop.ask([Ask([1], SamplingParams())]).__aenter__()):
            with pytest.raises(ApiError, match="stopping"):
                await refused
        return [late.inbox.get_nowait(), job.done.exception()]

    assert [error.status for error in asyncio.run(asked())] == [503, 503]


def work(pieces: int, done: list[str], name: str = "") -> Generator[None, None, str]:
    for _ in range(pieces):
        done.append(name)
        yield
    return name


def test_long_work_is_done_one_after_the_other() -> None:
    """Each job holds memory while it is under way."""
    done: list[str] = []

    async def all_of_them() -> list[str]:
        loop = EngineLoop(Scripted("x"), Metrics(dict), max_answers=9, timeout=60)
        loop.start()
        results = await asyncio.gather(*(loop.compute(work(3, done, name)) for name in "abc"))
        await loop.stop()
        return results

    assert asyncio.run(all_of_them()) == ["a", "b", "c"]
    assert done == [*"aaabbbccc"]


def test_an_engine_that_fails_leaves_other_work_alone() -> None:
    async def both() -> tuple[Any, Any]:
        loop = EngineLoop(Failing(ENDLESS), Metrics(dict), max_answers=9, timeout=60)
        loop.start()

        async def answered() -> None:
            async with loop.ask([Ask([1], SamplingParams())]) as events:
                async for _ in events:
                    pass

        results = await asyncio.gather(answered(), loop.compute(work(50, [], "done")), return_exceptions=True)
        await loop.stop()
        return results[0], results[1]

    failed, done = asyncio.run(both())
    assert "not numbers" in str(failed) and done == "done"


def test_times_between_tokens_are_those_of_steps() -> None:
    metrics = Metrics(dict)
    metrics.token(0.5, first=True)
    metrics.token(0.0, first=False)
    metrics.token(0.1, first=False)
    text = metrics.text().decode()
    assert "pellucid_generated_tokens_total 3.0" in text and "time_between_tokens_seconds_count 1.0" in text


class Failing(Scripted):
    """Its third step fails."""

    error: Exception = PellucidError("the model's logits are not numbers")

    def step(self) -> list[Event]:
        if self.steps == 2:
            self.steps += 1
            raise self.error
        return super().step()


@pytest.mark.parametrize("error", [PellucidError("the logits are not numbers"), ZeroDivisionError("by zero")])
def test_an_engine_that_fails_fails_those_under_way_only(error: Exception) -> None:
    engine = Failing(ENDLESS)
    engine.error = error
    with serving(engine) as live:
        reply = live.chat()
        assert reply.status == 500 and str(error) in reply.error
        assert not engine.busy
        assert live.chat(max_tokens=3).status == 200
        engine.steps = 0
        assert b'"type":"server_error"' in live.chat(stream=True).body


PROGRAM = """
import sys
from pellucid.serving.app import create_app
from pellucid.serving.run import listen, server, url_of
from pellucid.serving.service import Settings
from tests.serving.stand_in import Scripted
listening = listen("127.0.0.1", 0)
print(listening.getsockname()[1], flush=True)
app = create_app(Scripted("the one " * 1000, seconds=0.02), Settings("tiny"))
server(app, drain=float(sys.argv[1])).run([listening])
"""


@pytest.mark.parametrize(("drain", "whole"), [(20, True), (1, False)])
def test_sigterm_lets_answers_end(drain: int, whole: bool) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", PROGRAM, str(drain)]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        live = Live(int(process.stdout.readline()), Scripted(""), service=None)  # type: ignore[arg-type]
        until(lambda: answers(live))
        connection = live.connect()
        live.send(connection, "POST", "/v1/completions", {"prompt": "a", "max_tokens": 100, "stream": True})
        response = connection.getresponse()
        assert response.read(10)
        process.send_signal(signal.SIGTERM)
        until(lambda: not answers(live))  # no new connection
        rest = response.read()
        assert (b"[DONE]" in rest) is whole and (b"the server is stopping" in rest) is not whole
        assert process.wait(20) == -signal.SIGTERM
        connection.close()


def answers(live: Live) -> bool:
    try:
        return live.ask("GET", "/health").status == 200
    except OSError:
        return False
