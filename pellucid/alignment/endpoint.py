"""A model behind an OpenAI-compatible API: one question, one reply."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from pellucid.errors import InputError, PellucidError

SECONDS = 60.0
HERE = ("localhost", "127.0.0.1", "::1")  # no proxy leads there
MOST = 1 << 20  # bytes of a reply that are read


@dataclass(frozen=True, slots=True)
class Endpoint:
    """url: of the API, such as http://127.0.0.1:8000/v1. seconds: how long a reply may take. tokens: the most that it
    may have; a model that thinks aloud before its verdict needs many."""

    url: str
    model: str
    key: str | None = None
    seconds: float = SECONDS
    tokens: int = 256

    @classmethod
    def open(cls, url: str, model: str | None = None, key: str | None = None, seconds: float = SECONDS) -> Endpoint:
        """model: None asks the server for its first one. Raises `InputError` for what is no address or no key,
        `PellucidError` where no server answers there."""
        try:
            parts = urlsplit(url)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # a port out of range
            usable = False
        if not usable:
            raise InputError(f"{url} is no address of a judge: give one such as http://127.0.0.1:8000/v1")
        if key is not None and not (key.isascii() and key.isprintable()):
            raise InputError("the key of the judge has a character that no key has, such as an end of line: mend it")
        end = cls(url.rstrip("/"), model or "", key, seconds)
        if model is not None:
            return end
        listed = end.ask("/models")
        try:
            return cls(end.url, str(listed["data"][0]["id"]), key, seconds)
        except (LookupError, TypeError):
            raise PellucidError(f"{end.url}/models lists no model as OpenAI's API does: name one") from None

    def reply(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """What the model says, the likeliest token at each step. Raises `PellucidError` where it says nothing."""
        body = {"model": self.model, "messages": list(messages), "temperature": 0, "max_tokens": self.tokens}
        answer = self.ask("/chat/completions", body)
        try:
            content = answer["choices"][0]["message"]["content"]
        except (LookupError, TypeError):
            raise PellucidError(
                f"the judge at {self.url} gave what is no chat completion: give the address of an OpenAI-compatible "
                "API, which often ends in /v1"
            ) from None
        return content if isinstance(content, str) else ""

    def ask(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The JSON that the server gives. Raises `PellucidError` where it gives none within the time."""
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        data = None if body is None else json.dumps(body).encode()
        end = time.monotonic() + self.seconds
        request = urllib.request.Request(self.url + path, data, headers)
        direct = [urllib.request.ProxyHandler({})] if urlsplit(self.url).hostname in HERE else []
        try:
            with urllib.request.build_opener(*direct).open(request, timeout=self.seconds) as response:
                content = b""
                while len(content) < MOST and (part := response.read1(MOST - len(content))):
                    content += part
                    if time.monotonic() > end:  # each part within the time, and all of them not
                        raise TimeoutError
        except urllib.error.HTTPError as error:
            said = " ".join(error.read(500).decode("utf-8", "replace").split())[:200]
            raise PellucidError(
                f"the judge at {self.url} refused with status {error.code}: {said or error.reason}"
            ) from None
        except TimeoutError:
            raise self._late() from None
        except (OSError, http.client.HTTPException) as error:
            if isinstance(getattr(error, "reason", None), TimeoutError):
                raise self._late() from None
            raise PellucidError(
                f"no judge answers at {self.url} ({getattr(error, 'reason', error)}): start it first, or give another"
            ) from None
        try:
            return json.loads(content)
        except ValueError:
            raise PellucidError(
                f"the judge at {self.url} gave what is no JSON: give the address of an OpenAI-compatible API"
            ) from None

    def _late(self) -> PellucidError:
        return PellucidError(
            f"the judge at {self.url} gave no answer within {self.seconds:g} s: allow more, or ask a faster one"
        )
