"""Who may ask: keys, hosts, origins; and what the server says of itself."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.serving.live import serving
from tests.serving.stand_in import Scripted, tiny_engine

OURS = "http://studio.example"


def status(live: Any, headers: dict[str, str], path: str = "/v1/models", method: str = "GET") -> int:
    return int(live.ask(method, path, None, headers).status)


def test_keys() -> None:
    with serving(Scripted("Hello"), keys=("first", "second")) as live:
        assert status(live, {}) == 401
        assert live.ask("GET", "/v1/models").json["error"]["code"] == "invalid_api_key"
        assert live.ask("GET", "/v1/models").headers["www-authenticate"] == "Bearer"
        for wrong in ("first", "Bearer", "Bearer ", "Bearer firs", "Bearer firstsecond", "Basic first", "Bearer \xe9"):
            assert status(live, {"Authorization": wrong}) == 401, wrong
        for right in ("Bearer first", "bearer second"):
            assert status(live, {"Authorization": right}) == 200
        assert status(live, {}, "/metrics") == 401 and status(live, {}, "/nowhere") == 401
        assert status(live, {}, "/health") == 200
        assert live.chat().status == 401


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("localhost", True),
        ("LOCALHOST:8000", True),
        ("127.0.0.1:8000", True),
        ("[::1]:8000", True),
        ("192.168.1.7", True),
        ("models.example", True),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("evil.example:127", False),
        ("user@evil.example", False),
        ("[::1", False),
        ("", False),
    ],
)
def test_a_rebound_name_is_refused(host: str, allowed: bool) -> None:
    with serving(Scripted("Hello"), hosts=("models.example",)) as live:
        assert status(live, {"Host": host}) == (200 if allowed else 403)


def test_foreign_pages_are_refused() -> None:
    with serving(Scripted("Hello"), origins=(OURS,)) as live:
        for origin in ("http://evil.example", "null", f"{OURS}.evil.example", "http://localhost:1", "http://[", ""):
            assert status(live, {"Origin": origin}) == 403, origin
            assert live.ask("POST", "/v1/completions", {"prompt": "a"}, {"Origin": origin}).status == 403
        own = f"127.0.0.1:{live.port}"
        assert status(live, {"Origin": f"http://{own}"}) == 200
        reply = live.ask("GET", "/v1/models", None, {"Origin": OURS})
        assert reply.status == 200 and reply.headers["access-control-allow-origin"] == OURS
        preflight = {
            "Origin": OURS,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization, content-type",
        }
        reply = live.ask("OPTIONS", "/v1/chat/completions", None, preflight)
        assert reply.status == 200 and reply.headers["access-control-allow-origin"] == OURS
        reply = live.ask("OPTIONS", "/v1/chat/completions", None, {**preflight, "Origin": "http://evil.example"})
        assert reply.status == 400 and "access-control-allow-origin" not in reply.headers
    with serving(Scripted("Hello"), origins=("*",)) as live:
        assert status(live, {"Origin": "http://anyone.example"}) == 200


def test_what_the_server_says_of_itself() -> None:
    with serving(Scripted("Hello there"), name="org/tiny") as live:
        assert live.ask("GET", "/v1/models/org/tiny").json["id"] == "org/tiny"
        assert live.ask("GET", "/health").json == {"status": "ok"}
        document = live.ask("GET", "/openapi.json").json
        assert document["openapi"].startswith("3.1")
        chat = document["paths"]["/v1/chat/completions"]["post"]
        assert chat["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("/ChatAsked")
        properties = document["components"]["schemas"]["ChatAsked"]["properties"]
        assert {"messages", "temperature", "tools", "response_format"} <= set(properties)
        assert "schema" in document["components"]["schemas"]["JsonSchema"]["properties"]
        page = live.ask("GET", "/docs").body.decode()
        assert "/v1/chat/completions" in page and "src=" not in page and "https:" not in page


def test_metrics_count_what_happened() -> None:
    with serving(Scripted("the end")) as live:
        tokens = live.chat().json["usage"]
        live.complete("a", nonsense=1)
        reply = live.ask("GET", "/metrics")
    assert reply.headers["content-type"].startswith("text/plain")
    lines = dict(line.rsplit(" ", 1) for line in reply.body.decode().splitlines() if not line.startswith("#"))
    assert float(lines["pellucid_generated_tokens_total"]) == tokens["completion_tokens"]
    assert float(lines["pellucid_prompt_tokens_total"]) == tokens["prompt_tokens"]
    assert float(lines["pellucid_time_to_first_token_seconds_count"]) == 1
    assert float(lines["pellucid_time_between_tokens_seconds_count"]) == tokens["completion_tokens"] - 1
    assert float(lines['pellucid_answers_total{reason="stop"}']) == 1
    assert float(lines['pellucid_http_responses_total{route="/v1/chat/completions",status="200"}']) == 1
    assert float(lines['pellucid_http_responses_total{route="/v1/completions",status="400"}']) == 1
    assert float(lines["pellucid_engine_running"]) == 0


@pytest.mark.skipif(find_spec("schemathesis") is None, reason="needs schemathesis")
def test_schemathesis_finds_nothing(tmp_path: Path) -> None:
    """Whatever the OpenAPI document allows, and much that it does not, is answered as it says."""
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    with serving(tiny_engine()) as live:
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"http://127.0.0.1:{live.port}/openapi.json"]
        done = subprocess.run(
            [*command, "--checks", checks, "--max-examples", "20", "--seed", "1"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stdout
    assert "Tested: 10" in done.stdout
