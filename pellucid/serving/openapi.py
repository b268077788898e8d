"""The server describes itself: an OpenAPI document, and the page that shows it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.metadata import version
from typing import Any, NamedTuple

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from pellucid.serving import answers, api


class Operation(NamedTuple):
    """One thing that can be asked. answered: a model, or the media type of an answer that is no JSON of ours."""

    method: str
    path: str
    summary: str
    asked: type[BaseModel] | None
    answered: type[BaseModel] | str
    streamed: type[BaseModel] | None = None


OPERATIONS = (
    Operation("get", "/v1/models", "The model that is served, and its sampling defaults.", None, answers.Models),
    Operation("get", "/v1/models/{model}", "The same of one model.", None, answers.Model),
    Operation(
        "post",
        "/v1/chat/completions",
        "Answer a conversation.",
        api.ChatAsked,
        answers.ChatCompletion,
        answers.ChatChunk,
    ),
    Operation(
        "post",
        "/v1/completions",
        "Go on with a text.",
        api.CompletionAsked,
        answers.Completion,
        answers.Completion,
    ),
    Operation("post", "/v1/embeddings", "Texts as vectors.", api.EmbeddingAsked, answers.Embeddings),
    Operation("post", "/tokenize", "The token ids of a text or a conversation.", api.TokenizeAsked, answers.Tokens),
    Operation("post", "/detokenize", "The text of token ids.", api.DetokenizeAsked, answers.Text),
    Operation("get", "/health", "Whether the server can answer.", None, answers.Health),
    Operation("get", "/metrics", "Numbers for Prometheus.", None, "text/plain"),
    Operation("get", "/openapi.json", "This description.", None, "application/json"),
    Operation("get", "/docs", "This description, to be read.", None, "text/html"),
)
ERRORS = {"400": "It was asked wrongly.", "401": "The API key is missing or wrong.", "403": "Not from there."} | {
    "404": "There is no such model.",
    "408": "It took too long.",
    "413": "The body is too large.",
    "429": "Too much is under way.",
    "500": "The model or the server failed.",
    "503": "The server is stopping.",
}


def document(name: str) -> dict[str, Any]:
    """The OpenAPI 3.1 document of a server of the model `name`."""
    inputs = [operation.asked for operation in OPERATIONS if operation.asked is not None]
    outputs = {
        one
        for operation in OPERATIONS
        for one in (operation.answered, operation.streamed, answers.Failure)
        if isinstance(one, type)
    }
    _, schemas = models_json_schema(
        [(one, "validation") for one in inputs] + [(one, "serialization") for one in sorted(outputs, key=str)],
        ref_template="#/components/schemas/{model}",
    )
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _described(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": f"pellucid: {name}", "version": version("pellucid")},
        "paths": paths,
        "components": {
            "schemas": schemas.get("$defs", {}),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _described(operation: Operation) -> dict[str, Any]:
    content: dict[str, Any]
    if isinstance(operation.answered, str):
        content = {operation.answered: {}}
    else:
        content = {"application/json": {"schema": _reference(operation.answered)}}
    said = "The answer."
    if operation.streamed is not None:
        content["text/event-stream"] = {}  # OpenAPI 3.1 has no word for what the events of a stream are
        said = f"The answer; where 'stream' is true, events of {operation.streamed.__name__}, and then [DONE]."
    failure = {"application/json": {"schema": _reference(answers.Failure)}}
    described: dict[str, Any] = {
        "summary": operation.summary,
        "responses": {
            "200": {"description": said, "content": content},
            **{status: {"description": text, "content": failure} for status, text in ERRORS.items()},
        },
    }
    if "{model}" in operation.path:
        described["parameters"] = [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}]
    if operation.asked is not None:
        schema = _reference(operation.asked)
        described["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return described


def _reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def page(name: str) -> str:
    """The document as HTML, with nothing to load from elsewhere."""
    sections = "".join(_section(operation) for operation in OPERATIONS)
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>pellucid: {escape(name)}</title>"
        "<style>body{font:16px/1.5 system-ui;max-width:60rem;margin:2rem auto;padding:0 1rem}"
        "table{border-collapse:collapse}td{padding:.1rem 1rem .1rem 0;vertical-align:top}</style>"
        f"<h1>{escape(name)}</h1><p>For programs: <a href=/openapi.json>openapi.json</a>.</p>{sections}</html>"
    )


def _section(operation: Operation) -> str:
    fields = "" if operation.asked is None else _fields(operation.asked.model_json_schema())
    return (
        f"<h2><code>{operation.method.upper()} {escape(operation.path)}</code></h2>"
        f"<p>{escape(operation.summary)}</p>{fields}"
    )


def _fields(schema: dict[str, Any]) -> str:
    needed: Sequence[str] = schema.get("required", ())
    rows = (
        f"<tr><td><code>{escape(name)}</code><td>{escape(_type(field))}{', needed' if name in needed else ''}"
        f"<td>{escape(field.get('description', ''))}"
        for name, field in schema["properties"].items()
    )
    return f"<table>{''.join(rows)}</table>"


def _type(field: dict[str, Any]) -> str:
    """A field's types in a word or two: "number", "text or list"."""
    if "anyOf" in field:
        kinds = [_type(one) for one in field["anyOf"]]
        return " or ".join(dict.fromkeys(kind for kind in kinds if kind != "null"))
    if "enum" in field or "const" in field:
        return " or ".join(map(repr, field.get("enum", [field.get("const")])))
    return str(field.get("type", "object"))
