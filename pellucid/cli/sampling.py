"""The sampling flags: written down once, added to the signature of each command that has them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any, NamedTuple, TypeVar

import typer

Result = TypeVar("Result")


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
        bool,
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

    def with_flags(command: Callable[..., Result]) -> Callable[..., Result]:
        @wraps(command)
        def called(**given: Any) -> Result:
            values = {name: given.pop(name) for name in FLAGS if name not in without}
            preset = values.pop("preset")
            asked = {name: value for name, value in values.items() if not (value is False or value == [])}
            return command(**given, sampling=Sampling(asked, preset))

        parameters: list[inspect.Parameter] = []
        for parameter in inspect.signature(command, eval_str=True).parameters.values():
            if parameter.name != "sampling":
                parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
                continue
            parameters += (
                inspect.Parameter(
                    name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=False if name == "ignore_eos" else None,
                    annotation=kind,
                )
                for name, kind in FLAGS.items()
                if name not in without
            )
        called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return called

    return with_flags
