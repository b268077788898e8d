"""`pellucid serve`: a model behind OpenAI's HTTP interface."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pellucid.cli import running
from pellucid.cli.sampling import NOTHING, Sampling, sampling_flags
from pellucid.errors import InputError

if TYPE_CHECKING:
    from pellucid.cli.timeline import Timeline
    from pellucid.inference.engine import Engine

ACCESS = "Who may ask"
LIMITS = "Limits"


@sampling_flags("stop", "ignore_eos", "seed")
def serve(
    context: typer.Context,
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
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FOLDER",
            help="An adapter (a PEFT folder), and the model name by which clients ask for it; may be given again.",
        ),
    ] = None,
    draft: Annotated[
        str | None,
        typer.Option(help="A smaller model of the same vocabulary, which guesses ahead where that is faster."),
    ] = None,
    guesses: Annotated[
        int,
        typer.Option(
            min=0,
            max=64,
            help="Tokens guessed ahead, by the draft model or from the text before; 0: 4 with --draft, else none.",
        ),
    ] = 0,
    dtype: running.Dtype = "auto",
    quantize: running.Quantize = None,
    deterministic: running.Deterministic = False,
    int8_cache: running.Int8Cache = False,
    sampling: Sampling = NOTHING,
) -> None:
    """Serve a model to OpenAI clients: chat, completions, tools, streams, log-probabilities, metrics.

    Sampling is what a request asks for, else the flags and the preset here, else the model's own
    generation_config.json; GET /v1/models shows each value and its source. GET /docs shows all that can be asked.

    Example: pellucid serve smollm2 --port 8000
    """
    check_installed()
    from pellucid.inference.presets import resolve
    from pellucid.serving.run import listen, server, url_of

    resolve(
        flags=sampling.values, preset_name=sampling.preset
    )  # what is asked wrongly is said before the model is loaded
    served = name or Path(model).name or model
    adapters = named_folders(adapter or (), served)
    timeline: Timeline = context.obj
    with listen(host, port) as listening:
        engine = open_engine(
            model,
            dtype,
            timeline,
            quantize=quantize,
            draft=draft,
            adapters=adapters,
            guesses=guesses,
            deterministic=deterministic,
            int8_cache=int8_cache,
        )
        from pellucid.serving.app import create_app
        from pellucid.serving.service import Settings

        settings = Settings(
            name=served,
            keys=tuple(api_key or ()),
            hosts=tuple(allow_host or ()),
            origins=tuple(allow_origin or ()),
            max_answers=max_answers,
            max_body=round(max_body * 2**20),
            timeout=timeout,
            flags=sampling.values,
            preset=sampling.preset,
            generation_config=dict(engine.model.generation_config),
        )
        app = create_app(engine, settings)
        url = url_of(listening)
        timeline.end("server")
        running.note(timeline.line())
        names = ", ".join(map(repr, app.state.service.models))
        running.note(f"serving {names} at {url}/v1 ({url}/docs shows what can be asked); Ctrl-C ends")
        if not settings.keys and not is_loopback(listening.getsockname()[0]):
            running.note("anyone who reaches this address may ask: --api-key lets in only who has a key")

        def at_end() -> None:
            for line in account(engine.stats()):
                running.note(line)

        server(app, drain, at_end).run(sockets=[listening])


def named_folders(given: Sequence[str], served: str) -> dict[str, str]:
    """NAME=FOLDER, of adapters -> folders by name. Raises `InputError` where one lacks, or a name comes twice.

    served: the name of the model itself.
    """
    found: dict[str, str] = {}
    for one in given:
        name, _, folder = one.partition("=")
        if not name or not folder:
            raise InputError(f"--adapter {one!r}: give a name and a folder, as in --adapter poet=runs/poet/final")
        if name in found or name == served:
            raise InputError(f"--adapter {one!r}: there is a {name!r} already: give it another name")
        found[name] = folder
    return found


def account(stats: Mapping[str, float]) -> Iterator[str]:
    """What came of the cache and of guesses, from the engine's numbers at the end."""
    if stats.get("slot_steps_taken"):
        yield (
            f"cache: {stats['cache_waste']:.1%} of what was in use held no token; one of the context's length for each "
            f"answer would have wasted {stats['cache_waste_contiguous']:.1%}"
        )
    if stats.get("drafts"):
        gain = stats["guess_gain"]  # 0: not measured yet
        yield (
            f"guesses: {stats['guesses_taken'] / stats['tokens_guessed']:.0%} of {stats['tokens_guessed']} were right; "
            f"a step with a draft gave {stats['accepted_length']:.2f} tokens"
            + (f", and answers came {gain:.2f} times as fast when last measured" if gain else "")
        )


def check_installed() -> None:
    """Raises `InputError` where the packages of the extra are missing."""
    missing = [name for name in ("starlette", "uvicorn", "prometheus_client") if find_spec(name) is None]
    if missing:
        raise InputError(f"serving needs {', '.join(missing)}: pip install 'pellucid[serve]'")


def is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.split("%")[0]).is_loopback


def open_engine(model: str, dtype: str, timeline: Timeline, **options: Any) -> Engine:
    """The engine of a model; what its cache holds, and why so much, is said."""
    engine = running.open_engine(model, dtype, timeline, **options)
    cache = engine.runner.cache
    running.note(
        f"cache: {cache.num_blocks:,} blocks of {cache.block_size} tokens, {engine.cache_bytes / 2**20:,.0f} MiB"
        f"{'' if engine.cache_bytes == cache.num_bytes() else ' with that of the draft'}: {engine.size_of_cache}"
    )
    return engine
