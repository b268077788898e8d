"""`pellucid data`: what is in files of training data, what is wrong with it, and how a model will be trained on it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pellucid.cli.data_show import show
from pellucid.cli.data_world import world
from pellucid.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from pellucid.data.check import Check
    from pellucid.tokenizer.tokenizer import Tokenizer

app = typer.Typer(help="Check training data, and see what a model is trained on.", no_args_is_help=True)
app.command()(show)
app.command()(world)

HEARTBEAT = 10  # seconds
BAD = 2  # the exit status where there is a problem

Wanted = Literal["text", "conversation", "preference"]


@app.command()
def check(
    files: Annotated[
        list[str], typer.Argument(help="Files, folders, data sets saved by datasets, or bundled:state-of-the-union.")
    ],
    wanted: Annotated[Wanted | None, typer.Option("--for", help="What is wanted: anything else is a problem.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Count tokens as this model or tokenizer does, with its chat template.")
    ] = None,
    context: Annotated[
        int | None, typer.Option(min=1, help="Conversations with more tokens than this are a problem.")
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Problems are as data.skip_bad takes them: left out, not an error.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Read all of the files: formats, how much there is, duplicates, and every problem by reason with its place.

    Status 2 where there is a problem.
    Example: pellucid data check conversations.jsonl --model smollm2 --context 512
    """
    from pellucid.data.check import check as check_files
    from pellucid.data.sources import find_files

    if context is not None and model is None:
        raise InputError("--context counts tokens: say whose with --model")
    sources = find_files(files)
    tokenizer = None if model is None else chat_tokenizer(model)
    with reading() as progress:
        found = check_files(sources, wanted=wanted, tokenizer=tokenizer, context=context, progress=progress)
    if as_json:
        print(json.dumps(as_dictionary(found, context), ensure_ascii=False, indent=2))
    else:
        from rich.console import Console

        print_check(found, model, context, Console())
    return 0 if not found.problems or (skip_bad and found.records) else BAD


def chat_tokenizer(name: str) -> Tokenizer:
    """The model's tokenizer, with the template that fine-tuning gives to a model without one."""
    from pellucid.alignment.templates import with_template
    from pellucid.cli.running import note
    from pellucid.cli.tokenizer import open_tokenizer

    tokenizer = open_tokenizer(name)
    if not tokenizer.chat_template:
        note(f"{name} has no chat template; conversations are counted with ChatML, as pellucid sft would give it")
    return with_template(tokenizer)


@contextmanager
def reading() -> Iterator[Callable[[int], None]]:
    """How many records have been read: a moving line on a terminal, a plain one every ten seconds elsewhere."""
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_terminal:
        with console.status("reading") as status:
            yield lambda records: status.update(f"{records:,} records read")
        return
    said = time.monotonic()

    def plain(records: int) -> None:
        nonlocal said
        if time.monotonic() - said >= HEARTBEAT:
            said = time.monotonic()
            print(f"{records:,} records read", file=sys.stderr, flush=True)

    yield plain


def as_dictionary(found: Check, context: int | None) -> dict[str, Any]:
    """Everything that `check` tells, for scripts."""
    report: dict[str, Any] = {
        "files": found.files,
        "records": found.records,
        "formats": dict(found.formats),
        "messages": dict(found.roles),
        "characters": found.characters,
        "changed": found.changed,
        "duplicates": {"count": found.duplicates.count, "examples": found.duplicates.examples},
        "problems": {reason: {"count": one.count, "examples": one.examples} for reason, one in found.problems.items()},
    }
    lengths = found.lengths
    if lengths.tokens:
        report["tokens"] = {
            "total": lengths.total,
            "supervised": lengths.supervised,
            "longest": {"tokens": lengths.longest_tokens, "place": lengths.longest},
            "percentiles": {str(percent): tokens for percent, tokens in lengths.percentiles().items()},
            **({} if context is None else {"over_context": lengths.over(context)}),
        }
    if found.pairs.chosen:
        chosen, rejected = found.pairs.means()
        report["pairs"] = {
            "count": len(found.pairs.chosen),
            "mean_tokens": {"chosen": chosen, "rejected": rejected},
            "chosen_longer": found.pairs.chosen_longer(),
        }
    return report


def print_check(found: Check, model: str | None, context: int | None, console: Console) -> None:
    """The same for people."""

    def line(text: str = "", style: str = "") -> None:
        console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    formats = ", ".join(f"{count:,} in the format {name}" for name, count in found.formats.items()) or "no good record"
    line(f"{found.files:,} file{'s' * (found.files != 1)}: {formats}")
    if found.roles:
        by = ", ".join(f"{count:,} {role}" for role, count in found.roles.most_common())
        line(f"{found.roles.total():,} messages: {by}")
    line(f"{found.characters:,} characters")
    if found.lengths.tokens:
        print_lengths(found, model, context, line)
    for what, count in found.changed.items():
        line(f"read otherwise than written: {what} ({count:,}x)")
    if found.duplicates.count:
        examples = ", ".join(found.duplicates.examples) + more(found.duplicates)
        line(f"{found.duplicates.count:,} duplicate{'s' * (found.duplicates.count != 1)}: {examples}")
    if not found.problems:
        line("no problem found", "green")
    for reason, one in sorted(found.problems.items(), key=lambda item: -item[1].count):
        line(f"{reason}: {one.count:,}", "bold red")
        for example in one.examples:
            line(f"  {example}")
        if one.count > len(one.examples):
            line(f"  and {one.count - len(one.examples):,} more")


def print_lengths(found: Check, model: str | None, context: int | None, line: Callable[[str], None]) -> None:
    lengths = found.lengths
    part = f", {lengths.supervised:,} of them supervised ({lengths.supervised / lengths.total:.0%})"
    line(
        f"{lengths.total:,} tokens of {model}{part if found.kinds['conversation'] or found.kinds['preference'] else ''}"
    )
    percentiles = ", ".join(f"{percent} % up to {tokens:,}" for percent, tokens in lengths.percentiles().items())
    line(f"tokens a record: {percentiles}, the longest {lengths.longest_tokens:,} ({lengths.longest})")
    if found.pairs.chosen:
        chosen, rejected = found.pairs.means()
        line(
            f"{len(found.pairs.chosen):,} pairs; tokens of an answer on average: chosen {chosen:.1f}, rejected "
            f"{rejected:.1f}; the chosen one is the longer in {found.pairs.chosen_longer():.0%} (equal counts half)"
        )
    if context is not None:
        over = lengths.over(context)
        line(f"longer than {context:,}: {over:,} of {len(lengths.tokens):,}")


def more(found: Any) -> str:
    return f" and {found.count - len(found.examples):,} more" if found.count > len(found.examples) else ""
