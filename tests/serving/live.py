"""A server on loopback, and a client of few lines, which can send what no good client would."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pellucid.serving.app import create_app
from pellucid.serving.run import listen, server
from pellucid.serving.service import Service, Settings
from tests.serving.stand_in import Engine, Scripted


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The message, of an error in OpenAI's shape."""
        assert set(self.json) == {"error"} and set(self.json["error"]) == {"message", "type", "param", "code"}
        return str(self.json["error"]["message"])

    @property
    def events(self) -> list[Any]:
        """The parts of a stream, which ends as it should."""
        lines = [line for line in self.body.decode().split("\n\n") if line]
        assert lines[-1] == "data: [DONE]"
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


@dataclass
class Live:
    port: int
    engine: Engine | Scripted
    service: Service
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Reply:
        """`body`: bytes as they are, or what becomes JSON."""
        connection = self.connect()
        try:
            self.send(connection, method, path, body, headers)
            response = connection.getresponse()
            return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)

    def send(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, data, {**self.headers, **(headers or {})})

    def chat(self, text: str = "Hello", **fields: Any) -> Reply:
        return self.ask("POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": text}], **fields})

    def complete(self, prompt: Any = "Hello", **fields: Any) -> Reply:
        return self.ask("POST", "/v1/completions", {"prompt": prompt, **fields})


@contextmanager
def serving(engine: Engine | Scripted, **settings: Any) -> Iterator[Live]:
    """A live server of `engine`; afterwards nothing may be left under way on it."""
    listening = listen("127.0.0.1", 0)
    app = create_app(engine, Settings(**{"name": "tiny", **settings}))
    web = server(app, drain=5)
    thread = threading.Thread(target=web.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    until(lambda: web.started)
    try:
        yield Live(listening.getsockname()[1], engine, app.state.service)
        until(lambda: not engine.busy and app.state.service.loop.under_way == 0)
        assert engine.stats()["blocks_used"] == 0
    finally:
        web.should_exit = True
        thread.join(20)
        listening.close()
    assert not thread.is_alive()


def until(holds: Callable[[], bool], seconds: float = 20) -> None:
    """Wait for what has to happen."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
