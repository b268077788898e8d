"""`pellucid constitution`: a model criticises, revises and judges its own answers by written principles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pellucid.cli.training import say
from pellucid.errors import InputError

if TYPE_CHECKING:
    from pellucid.alignment.constitution_measure import Measure

SHOW = "show"


def constitution(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file; or the word show, to read a run.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FIELD=VALUE]...",
            help="Fields of the recipe to set; of show: the run folder, and a principle to see all that it changed.",
            show_default=False,
        ),
    ] = None,
) -> int:
    """Constitutional AI: answers are criticised and revised by principles, then judged in pairs, and learnt from.

    Phase 1: answers to prompts that tempt to do harm, critique, revision, fine-tuning. Phase 2: the model answers
    twice, a judge prefers one by a principle, and the model learns from that. Help and harm are measured before and
    after each. The same command goes on where a run was stopped; a stage that is done is not made again.

    pellucid constitution show RUN prints what each principle changed, with the transcripts; show RUN PRINCIPLE all of
    one. It is in report.md of the run folder too.

    Example: pellucid constitution recipes/constitution.yaml rounds=3
    """
    if recipe == SHOW:
        return show(overrides or [])
    from pellucid.alignment.constitution_recipe import ConstitutionRecipe
    from pellucid.alignment.constitution_run import constitute
    from pellucid.training.recipe import read_recipe

    read = read_recipe(recipe, overrides or (), ConstitutionRecipe)
    ended = constitute(read, say=say)
    if ended.signal is not None:
        say("stopped and saved: the same command goes on from there")
        return 128 + ended.signal
    print_measures(ended.measured)
    typer.echo(f"Go on: pellucid chat {read.run}/{list(ended.measured)[-1]}, pellucid constitution show {read.run}")
    return 0


def show(words: list[str]) -> int:
    """Prints a run, or all that one of its principles changed."""
    from pathlib import Path

    from pellucid.alignment.constitution_report import as_markdown

    if not 1 <= len(words) <= 2:
        raise InputError("say which run to show, and a principle if you like: pellucid constitution show RUN PRINCIPLE")
    typer.echo(as_markdown(Path(words[0]).expanduser(), words[1] if len(words) > 1 else None), nl=False)
    return 0


def print_measures(measured: dict[str, list[Measure]]) -> None:
    """Help and harm of each model, side by side."""
    from rich.console import Console
    from rich.table import Table

    from pellucid.alignment.constitution_report import MODELS

    table = Table("on prompts that nothing was learnt from", *(MODELS[name] for name in measured))
    for column in table.columns[1:]:
        column.justify = "right"
    for measures in zip(*measured.values(), strict=True):
        table.add_row(measures[0].what, *map(str, measures))
    Console(highlight=False).print(table)
