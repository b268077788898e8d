"""A listening socket, and the web server on it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import uvicorn
from starlette.applications import Starlette

from pellucid.errors import InputError
from pellucid.serving.loop import EngineLoop

LAST_WORDS = 5.0  # seconds for the errors that end the answers that were broken off


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to `host` and `port` (0: any that is free). Raises `InputError` where that cannot be."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, OverflowError, UnicodeError) as error:
        raise InputError(f"--host {host}: there is no such address here ({error})") from None
    listening = socket.socket(family, kind, protocol)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(address)
    except OSError as error:
        listening.close()
        raise InputError(f"cannot listen on {host} port {port} ({error.strerror}): choose another --port") from None
    return listening


def url_of(listening: socket.socket) -> str:
    """Where a client on this machine finds it."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """Serves until SIGTERM or Ctrl-C; then it takes no new connection, and what is under way gets `drain` seconds.

    Answers that have not ended by then end with an error, so that every client hears what happened. at_end: is called
    after that, before the signal ends the process.
    """

    def __init__(self, config: uvicorn.Config, loop: EngineLoop, drain: float, at_end: Callable[[], None]) -> None:
        super().__init__(config)
        self._engine_loop, self._drain, self._at_end = loop, drain, at_end

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Called once the signal has come."""
        timer = asyncio.get_running_loop().call_later(self._drain, self._engine_loop.break_off)
        await super().shutdown(sockets)
        timer.cancel()
        self._at_end()


def server(app: Starlette, drain: float, at_end: Callable[[], None] = lambda: None) -> Server:
    """The web server: `server.run(sockets=[...])` serves."""
    config = uvicorn.Config(
        app,
        http="h11",  # reads on after an early answer, such as 413, until the client has sent its body
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=round(drain + LAST_WORDS),
    )
    return Server(config, app.state.service.loop, drain, at_end)
