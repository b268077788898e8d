"""`pellucid tokenizer`: train one, encode with one, compare several."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pellucid.cli.tokenizer_train import encode, train

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from pellucid.tokenizer.compare import Count
    from pellucid.tokenizer.tokenizer import Tokenizer

app = typer.Typer(help="Train a tokenizer, encode with one, compare several.", no_args_is_help=True)
app.command()(train)
app.command()(encode)

Counts = Mapping[str, Mapping[str, "Count"]]
"""text's name -> tokenizer's name -> how it is cut."""

SHADES = ("black on bright_cyan", "black on bright_yellow")  # alternating, so that borders show, spaces too
SEEN = str.maketrans({"\n": "⏎", "\t": "⇥", "\r": "␍"})


@app.command()
def compare(
    tokenizers: Annotated[
        list[str],
        typer.Argument(
            help="Two or more: a folder, a tokenizer or .gguf file, a hub id, or a packaged name (smollm2)."
        ),
    ],
    text: Annotated[
        str | None,
        typer.Option("--text", "-t", help="The text to cut; else a sentence in several languages, and code."),
    ] = None,
    width: Annotated[
        int, typer.Option("--width", min=1, help="The width of the model whose table is reckoned.")
    ] = 1024,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Cut the same text with several tokenizers: pieces in colour, tokens per byte and per word.

    Example: pellucid tokenizer compare mine/ smollm2 --text "How many tokens is this?"
    """
    from pellucid.tokenizer.compare import SAMPLES, count

    loaded = {short: open_tokenizer(name) for short, name in short_names(tokenizers).items()}
    texts = SAMPLES if text is None else {"text": text}
    counts = {title: {name: count(one, sample) for name, one in loaded.items()} for title, sample in texts.items()}
    if as_json:
        print(json.dumps(as_dictionary(loaded, counts, width), ensure_ascii=False, indent=2))
    else:
        from rich.console import Console

        print_counts(loaded, counts, width, Console())


def short_names(names: list[str]) -> dict[str, str]:
    """What each is called in the print: the last part of its path, where that tells it from the others."""
    from pathlib import Path

    lasts = [Path(name).name or name for name in names]
    return {last if lasts.count(last) == 1 else name: name for last, name in zip(lasts, names, strict=True)}


def open_tokenizer(name: str) -> Tokenizer:
    """The tokenizer alone: no weights are read. Raises InputError for a name that is none."""
    from pathlib import Path

    from pellucid.checkpoints.gguf_read import GGUF
    from pellucid.checkpoints.source import find_source
    from pellucid.tokenizer.tokenizer import Tokenizer

    path = Path(name).expanduser()
    if not path.exists():
        path = find_source(name).path
    return Tokenizer.from_gguf(GGUF(path).metadata) if path.suffix == ".gguf" else Tokenizer.load(path)


def as_dictionary(loaded: Mapping[str, Tokenizer], counts: Counts, width: int) -> dict[str, Any]:
    """Everything that `compare` tells, for scripts."""
    return {
        "tokenizers": {
            name: {
                "vocabulary": one.vocab_size,
                "table_parameters": one.vocab_size * width,
                "tokens": sum(row[name].tokens for row in counts.values()),
            }
            for name, one in loaded.items()
        },
        "texts": {
            title: {
                name: {
                    "pieces": list(count.pieces),
                    "tokens": count.tokens,
                    "bytes": count.bytes,
                    "words": count.words,
                    "tokens_per_byte": round(count.per_byte, 4),
                    "tokens_per_word": round(count.per_word, 4),
                }
                for name, count in row.items()
            }
            for title, row in counts.items()
        },
    }


def print_counts(loaded: Mapping[str, Tokenizer], counts: Counts, width: int, console: Console) -> None:
    from rich.padding import Padding

    names = max(map(len, loaded))
    for title, row in counts.items():
        console.print(title, style="bold", highlight=False, markup=False)
        for name, count in row.items():
            numbers = f"{count.tokens:>6,} tokens  {count.per_byte:.3f} per byte  {count.per_word:5.2f} per word"
            console.print(
                f"  {name:<{names}} {numbers}", highlight=False, markup=False, no_wrap=True, overflow="ignore"
            )
            pieces = in_colour(count.pieces, console.is_terminal)
            if console.is_terminal:
                console.print(Padding(pieces, (0, 0, 0, 4)))
            else:
                console.print("    ", pieces, sep="", soft_wrap=True)
        console.print()
    console.print("in all", style="bold")
    for name, one in loaded.items():
        tokens = sum(row[name].tokens for row in counts.values())
        table = f"a table of {one.vocab_size:,} x {width:,} = {one.vocab_size * width / 1e6:,.1f} M parameters"
        line = f"  {name:<{names}} {tokens:>6,} tokens, for {table}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def in_colour(pieces: tuple[str, ...], terminal: bool) -> Text:
    """The pieces one after the other on alternating shades; without a terminal, with a bar between them."""
    from rich.text import Text

    if not terminal:
        return Text("|".join(piece.translate(SEEN) for piece in pieces))
    return Text.assemble(*((piece.translate(SEEN), SHADES[place % 2]) for place, piece in enumerate(pieces)))
