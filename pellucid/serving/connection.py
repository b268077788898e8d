"""One HTTP exchange: its body within limits, its work ended when the client goes away, its answer as a stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pellucid.errors import PellucidError
from pellucid.serving import errors
from pellucid.serving.errors import ApiError

T = TypeVar("T")
Asked = TypeVar("Asked", bound=BaseModel)

BODY_SECONDS = 60.0  # a body has to be here by then
GRACE_SECONDS = 10.0  # how much longer than the request's time-out a reader may take to take its answer


async def read_body(request: Request, limit: int) -> bytes:
    """The body. Raises `ApiError`: 413 when it is, or claims to be, over `limit` bytes; 408 when it does not come."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)
    try:
        return await asyncio.wait_for(_collect(request, limit), BODY_SECONDS)
    except asyncio.TimeoutError:
        raise ApiError(408, f"the body did not come within {BODY_SECONDS:g} s: send it at once") from None


async def _collect(request: Request, limit: int) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > limit:
            raise _too_large(limit)
    return bytes(body)


def _too_large(limit: int) -> ApiError:
    message = f"the body is over {limit / 2**20:g} MiB: send less, or start the server with --max-body"
    return ApiError(413, message, code="request_too_large")


def parse(body: bytes, asked: type[Asked]) -> Asked:
    """The body as what this route takes. Raises `ApiError` (400) that names the field."""
    try:
        return asked.model_validate_json(body)
    except ValidationError as error:
        raise errors.from_body(error, asked) from None


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T], seconds: float | None = None) -> T:
    """The result of `work`, which is cancelled when the client goes away or after `seconds`: `ClientDisconnect`."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED, timeout=seconds)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """An answer part by part, as server-sent events: `data: JSON`, and `data: [DONE]` at the end.

    An error before the first part is the answer, with its status; after it, it is the last event. When the client goes
    away, or does not take its answer within `seconds`, the parts are closed.
    """

    media_type = "text/event-stream"

    def __init__(self, parts: AsyncGenerator[BaseModel, None], seconds: float) -> None:
        self._parts, self._seconds = parts, seconds
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(ClientDisconnect):
            await while_connected(receive, self._send(scope, receive, send), self._seconds + GRACE_SECONDS)

    async def _send(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._parts) as parts:
            try:
                first = await anext(parts)
            except PellucidError as error:
                await errors.response(error)(scope, receive, send)
                return
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await _event(send, _json(first))
            try:
                async for part in parts:
                    await _event(send, _json(part))
                await _event(send, b"[DONE]")
            except PellucidError as error:
                await _event(send, errors.response(error).body)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _json(part: BaseModel) -> bytes:
    """What was set, nulls too: in a stream what is absent has not changed."""
    return part.model_dump_json(exclude_unset=True).encode()


async def _event(send: Send, data: bytes | memoryview) -> None:
    await send({"type": "http.response.body", "body": b"data: " + data + b"\n\n", "more_body": True})
