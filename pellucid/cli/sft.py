"""`pellucid sft`: a model learns to answer from conversations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pellucid.cli.training import Overrides, RecipeFile, finish, preparing, say

if TYPE_CHECKING:
    from rich.console import Console

    from pellucid.alignment.before_after import Comparison


def sft(recipe: RecipeFile, overrides: Overrides = None) -> int:
    """Fine-tune a model on conversations: it learns what the assistant says in them, and to stop after it.

    Conversations are {"messages": [{"role": "user", "content": ...}, {"role": "assistant", ...}]}, a line each;
    ShareGPT, Alpaca and prompt / completion are recognised. They go through the model's own chat template; a base
    model without one gets ChatML. See what is learnt from before you begin: pellucid data show RECIPE.

    The recipe says everything; any field of it can be set behind it. The same command again resumes the run where it
    was stopped or killed. The run folder is a model: chat, generate, show and convert take its name. At the end: the
    answers before and after, how far the weights moved, and whether the model stops.

    Example: pellucid sft recipes/sft-smollm2.yaml data.train=conversations.jsonl optim.lr=1e-5
    """
    from pellucid.alignment.recipe import SFTRecipe
    from pellucid.alignment.sft import fine_tune
    from pellucid.training.recipe import read_recipe

    read = read_recipe(recipe, overrides or (), SFTRecipe)
    outcome, comparison = fine_tune(read, say=say, progress=preparing())
    if comparison is not None:
        from rich.console import Console

        print_comparison(Console(highlight=False), comparison)
    return finish(outcome, read.run, f"pellucid chat {read.run}")


def print_comparison(console: Console, comparison: Comparison) -> None:
    """The report, for a terminal."""
    from rich.table import Table
    from rich.text import Text

    from pellucid.alignment.before_after import said_of

    for answer in comparison.answers:
        console.print(Text(answer.question.strip(), "dim"), soft_wrap=True)
        expected = [("in the data", answer.expected, "cyan")] if answer.expected is not None else []
        for who, text, style in [*expected, ("before", answer.before, "yellow"), ("after", answer.after, "green")]:
            console.print(Text(f"{who:>12}  ", "bold").append(text.strip() or repr(text), style), soft_wrap=True)
        console.print()
    table = Table("part", "parameters", "change")
    for column in table.columns[1:]:
        column.justify = "right"
    for change in comparison.changes:
        table.add_row(change.part, f"{change.parameters:,}", f"{change.relative:.2%}")
    console.print(table)
    console.print("change: ||w - w0|| / ||w0||, how far the weights moved from those of the base", style="dim")
    stops = comparison.stops
    console.print(
        f"it stops: {stops.after} of {stops.asked} answers ended their turn within {stops.max_tokens} tokens "
        f"({stops.before} before)"
    )
    if comparison.losses is not None:
        console.print(
            f"loss on the validation data: {comparison.losses.before:.3f} before, {comparison.losses.after:.3f} after"
        )
    for one in comparison.measures:
        console.print(said_of(one))
