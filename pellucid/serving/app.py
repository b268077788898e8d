"""The routes: what comes in, who answers it, and what stands before them all."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pellucid.errors import PellucidError
from pellucid.serving import answers, api, chat, completions, connection, embeddings, errors, openapi
from pellucid.serving.errors import ApiError
from pellucid.serving.guard import Guard
from pellucid.serving.service import Service, Settings

if TYPE_CHECKING:
    from pellucid.inference.engine import Engine

Asked = TypeVar("Asked", bound=BaseModel)
Endpoint = Callable[[Request], Coroutine[Any, Any, Response]]


def create_app(engine: Engine, settings: Settings) -> Starlette:
    """The server of one engine. Its thread begins and ends with the application's lifespan."""
    service = Service(engine, settings)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        service.loop.start()
        service.warm_up()
        try:
            yield
        finally:
            await service.stop()

    app = Starlette(
        routes=routes(service),
        lifespan=lifespan,
        middleware=[
            Middleware(Counted, service=service),
            Middleware(CORSMiddleware, allow_origins=settings.origins, allow_methods=["*"], allow_headers=["*"]),
            Middleware(Guard, hosts=settings.hosts, origins=settings.origins, keys=settings.keys),
        ],
        exception_handlers={
            PellucidError: failed,
            HTTPException: not_found,
            ClientDisconnect: nobody_there,
            Exception: failed,
        },
    )
    app.state.service = service
    return app


def routes(service: Service) -> list[Route]:
    """What can be asked: the operations of the OpenAPI document, each with who answers it."""
    endpoints: dict[str, Endpoint] = {
        "/v1/models": models(service),
        "/v1/models/{model}": model(service),
        "/v1/chat/completions": generation(service, api.ChatAsked, chat.complete, chat.parts),
        "/v1/completions": generation(service, api.CompletionAsked, completions.complete, completions.parts),
        "/v1/embeddings": embedding(service),
        "/tokenize": tokenize(service),
        "/detokenize": detokenize(service),
        "/health": health(service),
        "/metrics": metrics(service),
        "/openapi.json": fixed(JSONResponse(openapi.document(service.settings.name))),
        "/docs": fixed(HTMLResponse(openapi.page(service.settings.name))),
    }
    paths = {"/v1/models/{model}": "/v1/models/{model:path}"}  # a model's name may have a slash
    return [
        Route(paths.get(one.path, one.path), endpoints[one.path], methods=[one.method.upper()])
        for one in openapi.OPERATIONS
    ]


def generation(
    service: Service,
    kind: type[Asked],
    complete: Callable[[Service, Asked], Coroutine[Any, Any, BaseModel]],
    parts: Callable[[Service, Asked], AsyncGenerator[BaseModel, None]],
) -> Endpoint:
    """An endpoint that generates, whole or as a stream; a client that goes away ends it."""

    async def endpoint(request: Request) -> Response:
        asked = await read(service, request, kind)
        if getattr(asked, "stream", None):
            return connection.EventStream(parts(service, asked), service.settings.timeout)
        return as_json(await connection.while_connected(request.receive, complete(service, asked)))

    return endpoint


def embedding(service: Service) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        asked = await read(service, request, api.EmbeddingAsked)
        answer = await connection.while_connected(request.receive, embeddings.embed(service, asked))
        return Response(answer, media_type="application/json")

    return endpoint


def models(service: Service) -> Endpoint:
    async def endpoint(_: Request) -> Response:
        return as_json(answers.Models(object="list", data=[card(service, name) for name in service.models]))

    return endpoint


def model(service: Service) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        name = request.path_params["model"]
        service.adapter(name)  # there is one
        return as_json(card(service, name))

    return endpoint


def card(service: Service, name: str) -> answers.Model:
    """A model that is served, and what it does where a chat asks for nothing."""
    defaults = service.sampling({}, {}).as_json()
    return answers.Model(
        id=name,
        object="model",
        created=service.started,
        owned_by="pellucid",
        parent=None if name == service.settings.name else service.settings.name,
        max_model_len=service.max_length,
        sampling={name: answers.Sourced(**sourced) for name, sourced in defaults.items()},
    )


def tokenize(service: Service) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        asked = await read(service, request, api.TokenizeAsked)
        tokenizer = service.tokenizer
        prompt, messages = asked.prompt, asked.messages

        def ids() -> list[int]:
            if prompt is not None:
                return tokenizer.encode(prompt, add_bos=asked.add_special_tokens and tokenizer.adds_bos)
            turns = [chat.for_template(message, number) for number, message in enumerate(messages or [], 1)]
            return tokenizer.apply_chat_template(turns, add_generation_prompt=True).ids

        tokens = await service.in_text_thread(ids)
        answer = answers.Tokens(count=len(tokens), max_model_len=service.max_length, tokens=tokens)
        if asked.return_token_strs:
            answer.token_strs = [tokenizer.decode([token]) for token in tokens]
        return as_json(answer)

    return endpoint


def detokenize(service: Service) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        asked = await read(service, request, api.DetokenizeAsked)
        return as_json(
            answers.Text(prompt=await service.in_text_thread(lambda: service.tokenizer.decode(asked.tokens)))
        )

    return endpoint


def health(service: Service) -> Endpoint:
    async def endpoint(_: Request) -> Response:
        alive = service.loop.alive
        return as_json(answers.Health(status="ok" if alive else "stopped"), 200 if alive else 503)

    return endpoint


def metrics(service: Service) -> Endpoint:
    async def endpoint(_: Request) -> Response:
        return Response(service.metrics.text(), media_type=service.metrics.content_type)

    return endpoint


def fixed(response: Response) -> Endpoint:
    async def endpoint(_: Request) -> Response:
        return response

    return endpoint


async def read(service: Service, request: Request, kind: type[Asked]) -> Asked:
    """The body, understood, and for the model that is served."""
    body = await connection.read_body(request, service.settings.max_body)
    asked = connection.parse(body, kind)
    service.adapter(getattr(asked, "model", None))
    return asked


def as_json(answer: BaseModel, status: int = 200) -> Response:
    """What was set, nulls too."""
    return Response(answer.model_dump_json(exclude_unset=True), status, media_type="application/json")


async def failed(_: Request, error: Exception) -> Response:
    """An error as an answer; what nobody foresaw is logged by the server, with its traceback."""
    said = error if isinstance(error, PellucidError) else PellucidError("this is a bug in pellucid: see its log")
    return errors.response(said)


async def not_found(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = {404: f"there is no {request.url.path} here", 405: f"{request.url.path} takes no {request.method}"}
    message = f"{what.get(error.status_code, error.detail)}: GET /docs shows what can be asked"
    return errors.response(ApiError(error.status_code, message, headers=error.headers))


async def nobody_there(_: Request, error: Exception) -> Response:
    """The client has gone: nobody reads this, and the log says 499, as nginx does."""
    return Response(status_code=499)


class Counted:
    """Counts answers by route and status."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._metrics = app, service.metrics
        self._known = {operation.path for operation in openapi.OPERATIONS}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                path = scope["path"]
                self._metrics.response(path if path in self._known else "other", message["status"])
            await send(message)

        await self._app(scope, receive, counted if scope["type"] == "http" else send)
