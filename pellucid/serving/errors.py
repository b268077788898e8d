"""What went wrong, in the shape of OpenAI's API: `{"error": {"message", "type", "param", "code"}}`.

Whatever a client can ask wrongly is a status from 400 to 499; 500 means that the model or the server failed.
Source: the API reference of OpenAI, "Error codes".
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from starlette.responses import JSONResponse, Response

from pellucid.errors import InputError, PellucidError, did_you_mean

MOST_COMPLAINTS = 1000  # about one body; more of them would take longer to put into words than to refuse


class ApiError(PellucidError):
    """An answer that is an error. The message is one sentence that says what to do.

    status: of HTTP. param: the field that is wrong. code: OpenAI's word for it, where it has one.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.headers = dict(headers or {})


def full(under_way: int, wanted: int) -> ApiError:
    """The queue has no room for a request now."""
    message = (
        f"{under_way} answers are under way or waiting, and there is no room for {wanted} more: ask again in a second"
    )
    return ApiError(429, message, code="queue_full", headers={"Retry-After": "1"})


def timed_out(seconds: float) -> ApiError:
    """The header tells OpenAI's clients not to ask the same again by themselves: it would take as long."""
    message = (
        f"the answer was not finished after {seconds:g} s: ask for fewer tokens, or start the server with --timeout"
    )
    return ApiError(408, message, code="timeout", headers={"X-Should-Retry": "false"})


def stopped() -> ApiError:
    """The server is about to end."""
    return ApiError(503, "the server is stopping: ask again when it is back", code="stopping")


def as_json(error: PellucidError) -> dict[str, Any]:
    """The body of an error."""
    kinds = {401: "authentication_error", 403: "permission_error", 408: "timeout_error", 429: "rate_limit_error"}
    kind = "server_error" if status_of(error) >= 500 else kinds.get(status_of(error), "invalid_request_error")
    param, code = (error.param, error.code) if isinstance(error, ApiError) else (None, None)
    return {"error": {"message": str(error), "type": kind, "param": param, "code": code}}


def status_of(error: PellucidError) -> int:
    if isinstance(error, ApiError):
        return error.status
    return 400 if isinstance(error, InputError) else 500


def response(error: PellucidError) -> Response:
    """The error as an answer."""
    headers = error.headers if isinstance(error, ApiError) else None
    return JSONResponse(as_json(error), status_of(error), headers)


def from_body(error: ValidationError, asked: type[BaseModel]) -> ApiError:
    """One sentence for what is wrong with a body: no JSON, a field that does not exist, a value that is not allowed."""
    if error.error_count() > MOST_COMPLAINTS:
        return ApiError(400, f"the body has {error.error_count()} mistakes: GET /docs shows what can be asked")
    complaints = error.errors(include_url=False)
    first = complaints[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "json_invalid":
        said = str(first.get("ctx", {}).get("error", "it cannot be read"))
        return ApiError(400, f"the body is not JSON: {said}")
    if not first["loc"]:
        return ApiError(400, _lower(first["msg"]))
    field = str(first["loc"][0])
    if first["type"] == "extra_forbidden":
        names = asked.model_fields if len(first["loc"]) == 1 else ()
        return ApiError(400, f"there is no field {place!r} here{did_you_mean(place, names)}", param=field)
    if first["type"] == "missing":
        return ApiError(400, f"the field {place!r} is missing", param=field)
    about = asked.model_fields.get(field)
    several = sum(complaint["loc"][:1] == (field,) for complaint in complaints) > 1
    if several and about is not None and about.description:  # each of the types that it may have was tried
        return ApiError(400, f"{field}: expected {about.description}", param=field)
    return ApiError(400, f"{place} = {reprlib.repr(first['input'])}: {_lower(first['msg'])}", param=field)


def _lower(message: str) -> str:
    message = message.removeprefix("Value error, ")
    return message[:1].lower() + message[1:]
