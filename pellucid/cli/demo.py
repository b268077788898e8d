"""`pellucid demo`: from text to a model that answers, each stage shown, and at the end what it is worth."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pellucid.cli.answers import WIDTH, explain, heading, show_answers, visible
from pellucid.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from pellucid.evaluation.examination import Exchange, Results
    from pellucid.evaluation.first_model import Demo
    from pellucid.training.loop import Outcome

EXCERPT = 420  # characters of the text that are shown
SHORT = {"pretrain": "base", "sft": "tuned", "dpo": "dpo"}
MARKS = {None: ("", "cyan"), True: ("\N{CHECK MARK} ", "green"), False: ("\N{MULTIPLICATION X} ", "red")}


def demo(
    context: typer.Context,
    text: Annotated[
        Path | None,
        typer.Option("--text", help="Your own text to learn from, instead of the invented world.", show_default=False),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(
            "--run", help="The folder for all of it.  [default: runs/demo, runs/demo-NAME]", show_default=False
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Another seed: another world, and another start.")] = 0,
    model: Annotated[
        str | None,
        typer.Option("--model", help="Train nothing: let this model answer three questions.", show_default=False),
    ] = None,
) -> int:
    """From nothing to a model that answers: text, tokenizer, pretraining, fine-tuning, preferences, examination, chat.

    It takes some minutes on two cores, and the same command goes on where it was stopped. The text tells of a small
    invented world whose every fact is known, so that each answer can be checked. At the end: one table, report.html.

    Example: pellucid demo --text book.txt
    """
    if model is not None:
        if text is not None:
            raise InputError("--model trains nothing and takes no --text: leave one of them out")
        show_answers(model, context.obj)
        return 0
    from rich.console import Console

    from pellucid.evaluation.first_model import WORLD, Demo, passages_in, size_for

    console = Console(highlight=False)
    console.width = min(console.width, WIDTH)
    if text is None:
        this = Demo(run or Path("runs/demo"), seed, WORLD)
    else:
        size = size_for(sum(map(len, passages_in(str(text)))))
        this = Demo(run or Path(f"runs/demo-{text.stem}"), seed, size, str(text))
    return walk(console, this)


def walk(console: Console, this: Demo) -> int:
    """All stages, or those that are left; the exit status."""
    from pellucid.alignment.dpo_run import learn_preferences
    from pellucid.alignment.sft import fine_tune
    from pellucid.cli.training import preparing, sample, say
    from pellucid.evaluation.demo_preferences import dpo_recipe, write_preferences
    from pellucid.evaluation.examination import examined, read_results
    from pellucid.evaluation.first_model import pretrain_recipe, sft_recipe
    from pellucid.training.pretrain import pretrain

    began = time.monotonic()
    this.begin()
    show_text(console, this)
    results = read_results(this.folder)
    if results is None:
        heading(console, "2", "Pretraining: a tokenizer and a model, from nothing but this text")
        explain(console, PRETRAINING)
        outcome = pretrain(pretrain_recipe(this), sample=sample, say=say, progress=preparing())
        if outcome.signal is not None:
            return stopped(console, outcome)
        show_tokens(console, this)
        heading(console, "3", "Fine-tuning: it learns to answer, to stop, and to say that it does not know")
        explain(console, FINE_TUNING if this.source is None else GOING_ON)
        tuned, _ = fine_tune(sft_recipe(this), say=say, progress=preparing())
        if tuned.signal is not None:
            return stopped(console, tuned)
        if this.size.dpo_steps:
            heading(console, "4", "Preferences: which of its own answers are better")
            explain(console, PREFERRING)
            if write_preferences(this, say):
                preferred, _ = learn_preferences(dpo_recipe(this), say=say, progress=preparing())
                if preferred.signal is not None:
                    return stopped(console, preferred)
            else:
                explain(console, "Too few of its answers are wrong to learn from: the fine-tuned model stays.")
        heading(console, "5", "Examination")
        results = examined(this, say)
        results.save(this.folder)
        explain(console, f"{time.monotonic() - began:,.0f} s from the first line to this one")
    else:
        explain(console, f"{this.folder} has come to its end before: this is what it gave")
    heading(console, "6", "What it is worth")
    show_table(console, results)
    explain(console, results.how)
    heading(console, "7", "A short chat")
    for exchange in results.exchanges:
        show_exchange(console, exchange, results.models)
    finish(console, this, results)
    return 0


PRETRAINING = (
    "The model sees the text a piece at a time and guesses each next token. Every wrong guess moves its numbers a "
    "little. Loss is how surprised it is on average; it has to fall. Samples show how it writes by then."
)
FINE_TUNING = (
    "So far the model only goes on with text. Now it reads conversations, and learns what an assistant says in them, "
    "and to stop. None is about the people who are held out. Some questions have no answer, and there it is shown to "
    "say so."
)
PREFERRING = (
    "Now it answers each question several times, by chance, and the world says which of its answers are right. Direct "
    "preference optimisation makes these likelier than the others. Whether it errs less, the last table says."
)
GOING_ON = (
    "Nobody has written questions about your text, so there are none to learn. It learns the form of a conversation: "
    "you give a beginning, it goes on for a sentence or two, and stops."
)


def show_text(console: Console, this: Demo) -> None:
    """What is learnt from."""
    from rich.markup import escape

    from pellucid.cli.training import say

    if this.source is None:
        heading(console, "1", f"The text: a small invented world of {this.size.people} people")
        explain(
            console,
            "Every fact of it is known and told many times in other words and orders, so that the model's answers can "
            "be checked one by one. Half of the people are held out: no conversation of stage 3 is about them.",
        )
    else:
        heading(console, "1", f"The text: {this.source}")
    say("writing the texts")
    this.write_text()
    console.print(f"[italic]{escape(this.excerpt(EXCERPT))}[/italic]")
    counts = ", ".join(f"{count:,} {what}" for what, count in this.counts().items())
    console.print(counts, style="dim")


def show_tokens(console: Console, this: Demo) -> None:
    """How the tokenizer that was made cuts the first words."""
    from rich.text import Text

    from pellucid.cli.answers import pieces
    from pellucid.evaluation.first_model import BASE
    from pellucid.tokenizer.tokenizer import Tokenizer
    from pellucid.training.run import TOKENIZER

    tokenizer = Tokenizer.load(this.folder / BASE / TOKENIZER)
    explain(console, f"The tokenizer learnt {tokenizer.vocab_size:,} pieces of text; the model reads and writes these:")
    text = Text()
    for _, piece in pieces(tokenizer, tokenizer.encode(" ".join(this.excerpt(90).split()))):
        text.append(visible(piece), "cyan").append("  ")
    console.print(text)


def show_table(console: Console, results: Results) -> None:
    from rich.table import Table

    from pellucid.evaluation.examination import MODELS

    table = Table("", *(MODELS[name] for name in results.models))
    for column in table.columns[1:]:
        column.justify = "right"
        column.no_wrap = True
    for line in results.table:
        table.add_row(line.measure, *line.values, style="bold" if line.important else "")
    console.print(table)


def show_exchange(console: Console, exchange: Exchange, models: Sequence[str]) -> None:
    from rich.text import Text

    truth = "nobody knows" if exchange.truth is None else exchange.truth
    console.print(Text(exchange.question, "bold").append(f"   ({exchange.about})", "dim"), soft_wrap=True)
    if exchange.answers[0].right is not None:
        console.print(Text("  truth   ", "dim").append(truth))
    for who, said in zip(models, exchange.answers, strict=True):
        mark, style = MARKS[said.right]
        console.print(
            Text(f"  {SHORT[who]:8}", "dim").append(mark + " ".join(said.text.split()), style), soft_wrap=True
        )


def finish(console: Console, this: Demo, results: Results) -> None:
    """Writes the page, and says what to do next."""
    from pellucid.evaluation.first_model import BASE
    from pellucid.evaluation.page import write_page

    page = write_page(this, results)
    heading(console, "=", "Go on")
    for command, what in (
        (f"pellucid chat {this.folder / results.models[-1]}", "ask it yourself"),
        (f"pellucid generate {this.folder / BASE} -p '...'", "the base model goes on with a text"),
        (f"pellucid show {this.folder / results.models[-1]}", "what is in it"),
        (str(page), "open it in a browser: curves, samples, every setting"),
    ):
        console.print(f"  [bold]{command}[/bold]  [dim]{what}[/dim]", soft_wrap=True)


def stopped(console: Console, outcome: Outcome) -> int:
    assert outcome.signal is not None
    explain(console, f"stopped after step {outcome.steps:,} and saved: the same command goes on from there")
    return 128 + outcome.signal
