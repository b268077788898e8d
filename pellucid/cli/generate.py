"""`pellucid generate`: go on with a text, as it is, without a chat template."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from pellucid.cli import running
from pellucid.cli.sampling import NOTHING, Sampling, sampling_flags
from pellucid.errors import InputError

if TYPE_CHECKING:
    from pellucid.cli.timeline import Timeline
    from pellucid.inference.engine import Engine
    from pellucid.inference.generate import Completion
    from pellucid.inference.output import Output
    from pellucid.inference.presets import Resolved
    from pellucid.tokenizer.tokenizer import Tokenizer

DEFAULTS = {"max_tokens": 128}
TOP_LOGPROBS = 5


class Asked(NamedTuple):
    """A prompt, what it asks of sampling for itself, and where it stands, for messages."""

    prompt: str
    request: dict[str, Any]
    place: str


@sampling_flags()
def generate(
    context: typer.Context,
    model: running.Model = "smollm2",
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", "-p", help="The text to go on with; may be given again.")
    ] = None,
    prompts_file: Annotated[
        Path | None,
        typer.Option(
            help='A prompt a line; in a .jsonl file a string or {"prompt": ..., "temperature": ...}; - is stdin.'
        ),
    ] = None,
    logprobs: Annotated[bool, typer.Option("--logprobs", help="Show how likely each token was.")] = False,
    top_logprobs: Annotated[
        int | None, typer.Option(min=0, help=f"How many alternatives to show with each token ({TOP_LOGPROBS}).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object for each answer.")] = False,
    dtype: running.Dtype = "auto",
    quantize: running.Quantize = None,
    deterministic: running.Deterministic = False,
    sampling: Sampling = NOTHING,
) -> None:
    """Go on with a text, or with many at once. No chat template: for questions there is `pellucid chat`.

    Sampling is what a prompt of a .jsonl file says for itself, else the flags, else the preset, else the model's own
    generation_config.json, else 128 tokens from the model's own distribution; --json says which.

    Example: pellucid generate smollm2 -p "Once upon a time" --max-tokens 100 --logprobs --json
    """
    shown = (TOP_LOGPROBS if logprobs else None) if top_logprobs is None else top_logprobs
    sampling = sampling._replace(values={**sampling.values, "logprobs": shown})
    asked = [Asked(text, {}, f"prompt {number}") for number, text in enumerate(prompt or [], 1)]
    asked += read_prompts(prompts_file) if prompts_file else []
    if not asked:
        raise InputError("there is nothing to go on with: give -p TEXT or --prompts-file FILE")
    for one in asked:  # what is asked wrongly is said before the model is loaded
        resolved(one, sampling, {})
    timeline: Timeline = context.obj
    alone = len(asked) == 1 and not asked[0].request  # a request may ask for several answers
    options: dict[str, Any] = {"max_sequences": 1} if alone else {}
    engine = running.open_engine(model, dtype, timeline, quantize=quantize, deterministic=deterministic, **options)
    how = [resolved(one, sampling, engine.model.generation_config) for one in asked]
    if alone and not as_json and how[0].params.logprobs is None:
        write_as_it_comes(engine, asked[0], how[0], timeline)
    else:
        write_in_order(engine, asked, how, timeline, as_json)
    running.note(timeline.line())


def resolved(one: Asked, sampling: Sampling, generation_config: dict[str, Any]) -> Resolved:
    """The parameters of one prompt, and where each comes from."""
    from pellucid.inference.presets import resolve

    try:
        return resolve(
            request=one.request,
            flags=sampling.values,
            preset_name=sampling.preset,
            generation_config=generation_config,
            defaults=DEFAULTS,
        )
    except InputError as error:
        raise InputError(f"{one.place}: {error}" if one.request else str(error)) from None


def read_prompts(path: Path) -> list[Asked]:
    """The prompts of a file, an error naming file and line. Empty lines are no prompts."""
    if str(path) == "-":
        return list(read_lines(sys.stdin, "stdin", as_json=False))
    try:
        with path.open(encoding="utf-8") as lines:
            return list(read_lines(lines, str(path), as_json=path.suffix == ".jsonl"))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8: save the file as UTF-8") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def read_lines(lines: Iterable[str], name: str, as_json: bool) -> Iterator[Asked]:
    for number, line in enumerate(lines, 1):
        text = line.rstrip("\r\n")
        if not text.strip():
            continue
        place = f"{name}, line {number}"
        yield read_object(text, place) if as_json else Asked(text, {}, place)


def read_object(text: str, place: str) -> Asked:
    expected = 'expected a string or {"prompt": "...", "temperature": 0.5, ...}'
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{place}: this is not JSON ({error}); {expected}") from None
    if isinstance(value, str):
        return Asked(value, {}, place)
    if not isinstance(value, dict) or not isinstance(value.get("prompt"), str):
        raise InputError(f"{place}: {text[:60]!r} is no prompt; {expected}")
    return Asked(value.pop("prompt"), value, place)


def write_as_it_comes(engine: Engine, one: Asked, how: Resolved, timeline: Timeline) -> None:
    """Print the prompt (at a terminal, dim) and what follows it."""
    from rich.console import Console

    from pellucid.inference.generate import prompt_ids
    from pellucid.inference.output import stream

    console = Console(highlight=False, markup=False, soft_wrap=True)
    events = stream(engine, prompt_ids(engine.tokenizer, one.prompt), how.params)
    if console.is_terminal:
        console.print(one.prompt, style="dim", end="")
    for event in events:
        timeline.end("first token")
        print(event.text, end="", flush=True)
    print(flush=True)
    if event.finish_reason == "length":
        running.note(f"ended by {event.finish_detail}")


def write_in_order(engine: Engine, asked: list[Asked], how: list[Resolved], timeline: Timeline, as_json: bool) -> None:
    """Print what follows each prompt, in their order. Every prompt is checked before the first is answered."""
    from pellucid.inference.generate import prompt_ids
    from pellucid.inference.output import Outputs
    from pellucid.inference.progress import AnswerBar

    tokenizer = engine.tokenizer
    with Outputs(engine) as outputs:
        for one, own in zip(asked, how, strict=True):
            try:
                outputs.add(prompt_ids(tokenizer, one.prompt), own.params)
            except InputError as error:
                raise InputError(f"{one.place}: {error}") from None
        with AnswerBar(outputs, shown=not sys.stdout.isatty()) as bar:  # at a terminal the answers show how far it is

            def after_step() -> None:
                bar.update()
                if engine.tokens_drawn:
                    timeline.end("first token")

            for number, output in enumerate(outputs.answered(after_step)):
                one = asked[number]
                for completion in output.answers:
                    if as_json:
                        print(json.dumps(as_object(one, how[number], output, completion, tokenizer)), flush=True)
                    else:
                        show(number + 1 if len(asked) > 1 else None, one, completion, tokenizer)


def as_object(
    one: Asked, how: Resolved, output: Output, completion: Completion, tokenizer: Tokenizer
) -> dict[str, Any]:
    """A completion for a script."""
    scored = zip(output.prompt[1:], output.prompt_logprobs or (), strict=False)
    return {
        "prompt": one.prompt,
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "finish_detail": completion.finish_detail,
        "prompt_tokens": completion.prompt_tokens,
        "completion_tokens": len(completion.token_ids),
        "first_token_seconds": completion.first_token_seconds,
        "seconds": completion.seconds,
        "seed": completion.seed,
        "token_ids": completion.token_ids,
        "logprobs": [as_token(tokenizer, *token) for token in tokens_of(completion)] or None,
        "prompt_logprobs": [as_token(tokenizer, token, *scores) for token, scores in scored] or None,
        "params": how.as_json(),
    }


def tokens_of(completion: Completion) -> Iterator[tuple[int, float, tuple[tuple[int, float], ...]]]:
    if completion.logprobs is not None and completion.alternatives is not None:
        yield from zip(completion.token_ids, completion.logprobs, completion.alternatives, strict=True)


def as_token(
    tokenizer: Tokenizer, token: int, logprob: float, alternatives: tuple[tuple[int, float], ...]
) -> dict[str, Any]:
    top = [{"id": other, "token": tokenizer.decode([other]), "logprob": value} for other, value in alternatives]
    return {"id": token, "token": tokenizer.decode([token]), "logprob": logprob, "top": top}


def show(number: int | None, one: Asked, completion: Completion, tokenizer: Tokenizer) -> None:
    """A completion for a reader; with log-probabilities, a line a token."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, soft_wrap=True)
    if number is not None:
        console.print(f"[{number}] {one.prompt}", style="bold")
    console.print(completion.text)
    for token, logprob, alternatives in tokens_of(completion):
        others = "  ".join(
            f"{tokenizer.decode([other])!r} {math.exp(value):.0%}" for other, value in alternatives if other != token
        )
        console.print(f"{tokenizer.decode([token])!r:>18} {math.exp(logprob):7.2%}   {others}", style="dim")
