"""`pellucid bench serve`: throughput and latencies of a server, at several numbers of clients at once."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pellucid.cli import running
from pellucid.errors import InputError, PellucidError

if TYPE_CHECKING:
    from pellucid.serving.bench import Bench

app = typer.Typer(help="Measure how fast it is here.", no_args_is_help=True)

ADDRESS = re.compile(r"serving .* at (http://\S+)/v1 ")
START_SECONDS = 60  # from its address to its first answer
NUMBER = re.compile(r"^pellucid_engine_(\w+?)(?:_total)? (\S+)$", re.MULTILINE)


@app.callback()
def group() -> None:
    """Measure how fast it is here."""


@app.command()
def serve(
    model: running.Model = "smollm2",
    options: Annotated[
        list[str] | None, typer.Argument(help="After `--`: options of pellucid serve.", show_default=False)
    ] = None,
    concurrency: Annotated[str, typer.Option(help="Clients at once, one number or several: 1,8,32.")] = "1,8,32",
    requests: Annotated[
        int | None, typer.Option(min=1, help="Requests for each of them (three a client, but at least eight).")
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Of each prompt, about.")] = 128,
    answer_tokens: Annotated[int, typer.Option(min=1, help="Of each answer.")] = 64,
    rate: Annotated[
        float | None, typer.Option(min=0.001, help="Requests a second that arrive, instead of one after the other.")
    ] = None,
    url: Annotated[str | None, typer.Option(help="Measure this server, of any maker, instead of starting one.")] = None,
    api_key: Annotated[str | None, typer.Option(help="For --url.", envvar="PELLUCID_API_KEY")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The numbers as JSON.")] = False,
    plot: Annotated[Path | None, typer.Option(help="A picture of them, such as bench.png.")] = None,
) -> None:
    """Throughput, time to first token and time between tokens of a server, as its clients see them.

    The server runs in a process of its own, on a free port; no two prompts begin alike, so that nothing is found in
    the prefix cache; answers are drawn at temperature 1. With --draft or --guesses among its options a second server
    without them stands beside it, and the two are measured in turn: that is what the speed-up is against.

    Example: pellucid bench serve smollm2 --concurrency 1,8,32
    """
    levels = parse_concurrency(concurrency)
    check_plot(plot)
    if model.startswith("-"):
        raise InputError(f"{model} stands where the model does: give the model before `--` and the server's options")
    keys = [*(word for _, word in values_of(options or [], "--api-key")), *(api_key or "").split()]
    key = next(iter(keys), None)  # the variable may hold several
    if url is not None and options:
        raise InputError(f"{' '.join(options)}: a server that runs already takes no options, leave them or --url out")
    from pellucid.serving.bench import Bench

    if url is not None:
        [results] = measure([Bench(url, key=key)], levels, requests, prompt_tokens, answer_tokens, rate)
    else:
        options = options or []
        servers = [options, without(options, "--draft", "--guesses")] if guessing(options) else [options]
        with ExitStack() as started:
            benches = [Bench(started.enter_context(started_server(model, one)), key=key) for one in servers]
            results, *plain = measure(benches, levels, requests, prompt_tokens, answer_tokens, rate)
        for one, other in zip(results, *plain, strict=True) if plain else ():
            one["plain_tokens_per_second"] = other["answer_tokens_per_second"]
    if as_json:
        print(json.dumps({"bench": "serve", "model": model if url is None else url, "levels": results}))
    else:
        show(results, prompt_tokens, answer_tokens)
    if plot is not None:
        draw(results, plot)
    if all(one["errors"] == one["requests"] for one in results):
        raise PellucidError("no request was answered: see what the server says")


def values_of(options: list[str], name: str) -> Iterator[tuple[range, str]]:
    """What stands behind an option, as "--name VALUE" or "--name=VALUE", and the places of both words."""
    for place, word in enumerate(options):
        if word == name and place + 1 < len(options):
            yield range(place, place + 2), options[place + 1]
        elif word.startswith(f"{name}="):
            yield range(place, place + 1), word.partition("=")[2]


def guessing(options: list[str]) -> bool:
    """Whether a server with these options guesses ahead: the last --guesses counts."""
    guesses = [value for _, value in values_of(options, "--guesses")]
    return any(values_of(options, "--draft")) or (bool(guesses) and guesses[-1] != "0")


def without(options: list[str], *names: str) -> list[str]:
    """The options but for these and their values."""
    taken = {place for name in names for places, _ in values_of(options, name) for place in places}
    return [word for place, word in enumerate(options) if place not in taken]


def parse_concurrency(text: str) -> list[int]:
    """ "1,8,32" -> [1, 8, 32]. Raises `InputError`."""
    try:
        levels = [int(part) for part in text.split(",")]
    except ValueError:
        levels = []
    if not levels or not all(1 <= level <= 1024 for level in levels):
        raise InputError(f"--concurrency {text}: give numbers from 1 to 1024, such as 1,8,32")
    return levels


def check_plot(plot: Path | None) -> None:
    """Said before anything is measured. Raises `InputError`."""
    from importlib.util import find_spec

    if plot is None:
        return
    if find_spec("matplotlib") is None:
        raise InputError("--plot needs matplotlib: pip install 'pellucid[plot]'")
    if plot.suffix not in (".png", ".svg", ".pdf") or not plot.parent.is_dir():
        raise InputError(f"--plot {plot}: give a .png, .svg or .pdf in a folder that is there")


@contextmanager
def started_server(model: str, options: list[str]) -> Iterator[str]:
    """`pellucid serve` in a child process; gives its address. Raises `PellucidError` with its last words."""
    command = [sys.executable, "-m", "pellucid", "serve", model, "--port", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr is not None
    said: list[str] = []
    try:
        for line in process.stderr:
            said.append(line.rstrip())
            running.note(said[-1])
            if found := ADDRESS.search(line):
                break
        else:
            last = next((one for one in reversed(said) if one), "it said nothing").removeprefix("error: ")
            wrong = InputError if process.wait() == 2 else PellucidError
            raise wrong(f"the server did not start: {last}")
        rest = threading.Thread(target=_pass_on, args=(process.stderr,), daemon=True)
        rest.start()
        wait_for(found[1], process)
        yield found[1]
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    rest.join(5)


def wait_for(address: str, process: subprocess.Popen[str]) -> None:
    """Until it answers. Raises `PellucidError` when the process has ended instead, or `START_SECONDS` are over."""
    direct, end = urllib.request.build_opener(urllib.request.ProxyHandler({})), time.monotonic() + START_SECONDS
    while process.poll() is None:
        if time.monotonic() > end:
            raise PellucidError(f"the server does not answer after {START_SECONDS} s: see what it says above")
        try:
            with direct.open(f"{address}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.02)
    raise PellucidError("the server ended before it answered: see what it says above")


def _pass_on(lines: Any) -> None:
    for line in lines:
        running.note(line.rstrip())


def measure(
    benches: list[Bench],
    levels: list[int],
    requests: int | None,
    prompt_tokens: int,
    answer_tokens: int,
    rate: float | None,
) -> list[list[dict[str, Any]]]:
    """Of each server a summary for each number of clients, with a bar on stderr meanwhile. A level of all servers comes
    before the next one, so that they meet the same machine."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    if not all(bench.exact for bench in benches):
        running.note("this server does not take ignore_eos: answers end where the model ends them")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    results: list[list[dict[str, Any]]] = [[] for _ in benches]
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        for level, (own, bench) in product(levels, zip(results, benches, strict=True)):
            count = requests or max(8, 3 * level)
            task = progress.add_task(f"{level} at once", total=count)
            before = engine_numbers(bench)
            found = bench.level(
                level, requests=count, prompt_tokens=prompt_tokens, answer_tokens=answer_tokens, rate=rate,
                done=lambda task=task: progress.advance(task),
            )  # fmt: skip
            own.append(found.summary() | server_side(before, engine_numbers(bench)))
            for error in dict.fromkeys(one.error for one in found.replies if one.error):
                running.note(f"{level} at once: {error}")
    return results


def engine_numbers(bench: Bench) -> dict[str, float]:
    """What a server of ours says at /metrics of its engine; nothing of another server."""
    try:
        return {name: float(value) for name, value in NUMBER.findall(bench.text("/metrics"))}
    except PellucidError:
        return {}


def server_side(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """What the cache wasted between two looks at the engine's numbers, and what came of guesses."""

    def grown(name: str) -> float:
        return after.get(name, 0.0) - before.get(name, 0.0)

    found = {}
    if grown("slot_steps_taken"):
        found["cache_waste"] = 1 - grown("slot_steps_held") / grown("slot_steps_taken")
        found["cache_waste_contiguous"] = 1 - grown("token_steps") / grown("slot_steps_contiguous")
    if grown("drafts"):
        found["accepted_length"] = 1 + grown("guesses_taken") / grown("drafts")
        found["guesses_taken"] = grown("guesses_taken") / grown("tokens_guessed")
        if after["guess_gain"]:  # 0: not measured yet
            found["guess_gain"] = after["guess_gain"]
    return found


def show(results: list[dict[str, Any]], prompt_tokens: int, answer_tokens: int) -> None:
    """The table, in milliseconds."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    table = Table(
        box=SIMPLE,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        caption=f"prompts of about {prompt_tokens} tokens, answers of {answer_tokens}; times in ms",
    )
    for name in ("at\nonce", "\nerrors", "in\ntok/s", "out\ntok/s", "first token\np50  p95  p99",
                 "between\np50  p95", "end to end\np50  p95"):  # fmt: skip
        table.add_column(name, justify="right", no_wrap=True)
    for one in results:
        table.add_row(
            str(one["concurrency"]), f"{one['errors']} of {one['requests']}",
            f"{one['prompt_tokens_per_second']:.0f}", f"{one['answer_tokens_per_second']:.0f}",
            milliseconds(one["time_to_first_token"], "p50", "p95", "p99"),
            milliseconds(one["time_between_tokens"], "p50", "p95"), milliseconds(one["end_to_end"], "p50", "p95"),
        )  # fmt: skip
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    for one in results:
        if "cache_waste" in one:
            console.print(
                f"{one['concurrency']} at once: {one['cache_waste']:.1%} of the cache in use held no token; "
                f"one of the context's length for each answer would have wasted {one['cache_waste_contiguous']:.1%}"
            )
        if "accepted_length" in one:
            console.print(
                f"{one['concurrency']} at once: {one['guesses_taken']:.0%} of the guesses were right, a step with them "
                f"gave {one['accepted_length']:.2f} tokens"
                + (f", answers came {one['guess_gain']:.2f} times as fast" if "guess_gain" in one else "")
            )
        if one.get("plain_tokens_per_second"):
            faster = one["answer_tokens_per_second"] / one["plain_tokens_per_second"]
            console.print(
                f"{one['concurrency']} at once: {faster:.2f} times as fast as the {one['plain_tokens_per_second']:.0f} "
                "tokens/s of a server without guesses, prompts included"
            )


def milliseconds(times: Mapping[str, float] | None, *shares: str) -> str:
    return "-" if times is None else "  ".join(f"{1000 * times[share]:.0f}" for share in shares)


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Throughput and latencies over the number of clients."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    clients = [one["concurrency"] for one in results]
    left.plot(clients, [one["answer_tokens_per_second"] for one in results], "o-", label="answers")
    left.plot(clients, [one["prompt_tokens_per_second"] for one in results], "s--", label="prompts")
    left.set(xlabel="clients at once", ylabel="tokens/s", ylim=(0, None))
    for name, label in (("time_to_first_token", "first token"), ("time_between_tokens", "between tokens")):
        for share, style in (("p50", "o-"), ("p95", "s--")):
            times = [1000 * (one[name] or {}).get(share, float("nan")) for one in results]
            right.plot(clients, times, style, label=f"{label}, {share}")
    right.set(xlabel="clients at once", ylabel="ms", yscale="log")
    for axes in (left, right):
        axes.legend()
    figure.savefig(path)
    running.note(f"drawn in {path}")
