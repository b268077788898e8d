"""Who may ask: what is refused before anything of a request is read.

A web page that the user happens to visit can send requests to a server on her machine. Two ways, and what stops them:
    DNS rebinding   the page's own name is made to mean 127.0.0.1: its name stands in Host, and is not ours
    cross-origin    the page sends a form to 127.0.0.1: its address stands in Origin, and is not ours
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from pellucid.serving.errors import ApiError, response

OPEN = ("/health",)  # to be asked without a key


class Guard:
    """Lets through what comes to this host, from no foreign page, with a key where keys are wanted.

    hosts: names under which the server may be reached, beside `localhost` and every IP address (an address cannot be
    rebound). origins: of the pages that may ask, such as "https://example.org"; "*" for all; a page that the server
    itself gave may. keys: one of them has to come as `Authorization: Bearer KEY`; none: nobody needs one.
    """

    def __init__(
        self, app: ASGIApp, *, hosts: Collection[str], origins: Collection[str], keys: Collection[str]
    ) -> None:
        self._app = app
        self._hosts = {"localhost", *(host.lower() for host in hosts)}
        self._origins = frozenset(origins)
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = self._refusal(Headers(scope=scope), scope["path"]) if scope["type"] == "http" else None
        await (self._app if refused is None else response(refused))(scope, receive, send)

    def _refusal(self, headers: Headers, path: str) -> ApiError | None:
        host = headers.get("host", "")
        if not self._is_ours(host):
            return ApiError(403, f"this server is not called {host!r}: start it with --allow-host if it should be")
        origin = headers.get("origin")
        allowed = {f"http://{host}", f"https://{host}", *self._origins}  # what this server itself gave, and others
        if origin is not None and origin not in allowed and "*" not in allowed:
            return ApiError(
                403, f"pages of {origin!r} may not ask: start the server with --allow-origin if they should"
            )
        if self._keys and path not in OPEN and not self._has_key(headers.get("authorization", "")):
            return ApiError(
                401,
                "the API key is missing or wrong: send it as 'Authorization: Bearer KEY'",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return None

    def _is_ours(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:  # a malformed IPv6 address
            return False
        return name in self._hosts or _is_address(name)

    def _has_key(self, authorization: str) -> bool:
        kind, _, key = authorization.partition(" ")
        # Every key is compared, each in constant time: how long it takes says nothing about how near a guess was.
        matches = [hmac.compare_digest(key.strip().encode(), ours) for ours in self._keys]
        return kind.lower() == "bearer" and any(matches)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
