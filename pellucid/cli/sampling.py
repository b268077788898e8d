"""The sampling flags: written down once, added to the signature of each command that has them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any, NamedTuple, TypeVar

import typer

Result = TypeVar("Result")

KEYWORD = inspect.Parameter.KEYWORD_ONLY


def _flag(kind: Any, about: str, **options: Any) -> Any:
    return Annotated[kind, typer.Option(help=about, rich_help_panel="Sampling", **options)]


FLAGS: dict[str, Any] = {  # in the order of --help
    "preset": _flag(str | None, "factual, balanced or creative: values by task."),
    "max_tokens": _flag(int | None, "The most tokens an answer may have.", show_default=False),
    "temperature": _flag(float | None, "0: always the most likely token; 1: the model's own distribution."),
    "top_k": _flag(int | None, "Draw among the k most likely tokens; 0: off."),
    "top_p": _flag(float | None, "Draw among the likeliest tokens that add up to p; 1: off."),
    "min_p": _flag(float | None, "Draw among tokens this fraction as likely as the likeliest; 0: off."),
    "repetition_penalty": _flag(float | None, "Above 1: what was read or said gets less likely."),
    "presence_penalty": _flag(float | None, "Taken once off tokens of the answer so far."),
    "frequency_penalty": _flag(float | None, "Taken off tokens of the answer for each time."),
    "stop": _flag(list[str] | None, "End the answer before this text; may be given again."),
    "ignore_eos": Annotated[
        bool | None,
        typer.Option("--ignore-eos", help="Go on past the end of the text.", rich_help_panel="Sampling"),
    ],
    "seed": _flag(int | None, "The same seed gives the same answer."),
}


class Sampling(NamedTuple):
    """What was asked for on the command line. values: of the flags that were given; preset: as it was named."""

    values: dict[str, Any]
    preset: str | None


NOTHING = Sampling({}, None)


def sampling_flags(*without: str) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """For a command with a parameter `sampling: Sampling`: in its place stand the flags, but those `without`."""
    kinds = {name: kind for name, kind in FLAGS.items() if name not in without}
    flags = [inspect.Parameter(name, KEYWORD, default=None, annotation=kind) for name, kind in kinds.items()]

    def with_flags(command: Callable[..., Result]) -> Callable[..., Result]:
        @wraps(command)
        def called(**given: Any) -> Result:
            values = {name: value for name in kinds if (value := given.pop(name)) is not None}
            preset = values.pop("preset", None)
            return command(**given, sampling=Sampling(values, preset))

        parameters: list[inspect.Parameter] = []
        for own in inspect.signature(command, eval_str=True).parameters.values():
            parameters += flags if own.name == "sampling" else [own.replace(kind=KEYWORD)]
        called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return called

    return with_flags
