"""`pellucid serve`: a model behind OpenAI's HTTP interface."""

from __future__ import annotations

import ipaddress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pellucid.cli import running
from pellucid.errors import InputError

if TYPE_CHECKING:
    from pellucid.inference.engine import Engine

ACCESS = "Who may ask"
LIMITS = "Limits"


def serve(
    model: running.Model = "smollm2",
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 is open to the network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    name: Annotated[
        str | None, typer.Option(help="What clients call the model (the name or the folder's name).")
    ] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            help="Let in only who sends this key; may be given again.",
            envvar="PELLUCID_API_KEY",
            rich_help_panel=ACCESS,
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="A name of this server, beside localhost and addresses.", rich_help_panel=ACCESS),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(help="Pages of this origin may ask, such as https://example.org.", rich_help_panel=ACCESS),
    ] = None,
    max_answers: Annotated[
        int,
        typer.Option(min=1, help="Answers under way or waiting; more are refused (429).", rich_help_panel=LIMITS),
    ] = 256,
    max_body: Annotated[float, typer.Option(min=0, help="MiB of one request.", rich_help_panel=LIMITS)] = 16,
    timeout: Annotated[
        float, typer.Option(min=0, help="Seconds that one request may take.", rich_help_panel=LIMITS)
    ] = 600,
    drain: Annotated[
        float, typer.Option(min=0, help="Seconds that answers may take to end at SIGTERM.", rich_help_panel=LIMITS)
    ] = 30,
    dtype: running.Dtype = "auto",
    preset: running.Preset = None,
    max_tokens: running.MaxTokens = None,
    temperature: running.Temperature = None,
    top_k: running.TopK = None,
    top_p: running.TopP = None,
    min_p: running.MinP = None,
    repetition_penalty: running.RepetitionPenalty = None,
    presence_penalty: running.PresencePenalty = None,
    frequency_penalty: running.FrequencyPenalty = None,
) -> None:
    """Serve a model to OpenAI clients: chat, completions, tools, streams, log-probabilities, metrics.

    Sampling is what a request asks for, else the flags and the preset here, else the model's own
    generation_config.json; GET /v1/models shows each value and its source. GET /docs shows all that can be asked.

    Example: pellucid serve smollm2 --port 8000
    """
    flags: dict[str, Any] = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty,
    }
    check_installed()
    from pellucid.inference.presets import resolve
    from pellucid.serving.run import listen, server, url_of

    resolve(flags=flags, preset_name=preset)  # what is asked wrongly is said before the model is loaded
    with listen(host, port) as listening:
        engine, generation_config = open_engine(model, dtype)
        from pellucid.serving.app import create_app
        from pellucid.serving.service import Settings

        settings = Settings(
            name=name or Path(model).name or model,
            keys=tuple(api_key or ()),
            hosts=tuple(allow_host or ()),
            origins=tuple(allow_origin or ()),
            max_answers=max_answers,
            max_body=round(max_body * 2**20),
            timeout=timeout,
            flags=flags,
            preset=preset,
            generation_config=generation_config,
        )
        app = create_app(engine, settings)
        url = url_of(listening)
        running.note(f"serving {settings.name!r} at {url}/v1 ({url}/docs shows what can be asked); Ctrl-C ends")
        if not settings.keys and not is_loopback(listening.getsockname()[0]):
            running.note("anyone who reaches this address may ask: --api-key lets in only who has a key")
        server(app, drain).run(sockets=[listening])


def check_installed() -> None:
    """Raises `InputError` where the packages of the extra are missing."""
    missing = [name for name in ("starlette", "uvicorn", "prometheus_client") if find_spec(name) is None]
    if missing:
        raise InputError(f"serving needs {', '.join(missing)}: pip install 'pellucid[serve]'")


def is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.split("%")[0]).is_loopback


def open_engine(model: str, dtype: str) -> tuple[Engine, dict[str, Any]]:
    """The engine of a model, and what the model's file says of sampling."""
    from pellucid.inference.engine import Engine

    decoder, tokenizer = running.open_model(model, dtype, packed=False)
    engine = Engine(decoder, tokenizer)
    blocks, size = engine.runner.cache.num_blocks, engine.runner.cache.block_size
    reason = engine.runner.why_not
    steps = "native" if reason is None else f"PyTorch's, because {reason}"
    running.note(f"small steps: {steps}; a cache of {blocks:,} blocks of {size} tokens")
    return engine, dict(decoder.generation_config)
