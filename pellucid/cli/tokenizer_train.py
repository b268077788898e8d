"""`pellucid tokenizer train` and `pellucid tokenizer encode`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pellucid.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from pellucid.tokenizer.counting import Progress
    from pellucid.tokenizer.tokenizer import Tokenizer
    from pellucid.tokenizer.train import TrainedBPE

HEARTBEAT = 30  # seconds
OWN_FILES = ("tokenizer.json", "tokenizer_config.json")


def train(
    corpus: Annotated[list[Path], typer.Argument(help="Text files in UTF-8, or folders of them.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write.")],
    vocab_size: Annotated[int, typer.Option("--vocab-size", help="How many tokens, special ones included.")] = 8192,
    pattern: Annotated[
        str, typer.Option(help="How text is split: gpt2, cl100k, o200k, qwen2, smollm ..., or a regex.")
    ] = "gpt2",
    special: Annotated[
        list[str] | None, typer.Option(help="A control token; may be given again. Default: <|endoftext|>.")
    ] = None,
    memory: Annotated[int, typer.Option(min=1, help="For counting, in MiB; beyond it, rare words are dropped.")] = 1024,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that count. Default: one, or all for a big corpus.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Train a byte-level BPE tokenizer on text and write it as a folder that transformers opens.

    Example: pellucid tokenizer train book.txt --vocab-size 8192 -o tok/
    """
    from pellucid.checkpoints.atomic import atomic_folder, check_replaceable
    from pellucid.tokenizer.corpus import files_of, read_texts
    from pellucid.tokenizer.train import train_bpe

    files = files_of(corpus)
    check_replaceable(output, OWN_FILES, "tokenizer.json", "a tokenizer")
    started = time.perf_counter()
    with progress_bar(sum(file.stat().st_size for file in files)) as progress:
        trained = train_bpe(
            read_texts(files),
            vocab_size,
            split=pattern,
            special_tokens=["<|endoftext|>"] if special is None else special,
            workers=workers,
            memory_budget=memory << 20,
            progress=progress,
        )
    seconds = time.perf_counter() - started
    tokenizer = trained.tokenizer()
    with atomic_folder(output) as folder:
        tokenizer.save(folder)
    report = as_dictionary(trained, tokenizer, output, seconds)
    if as_json:
        print(json.dumps(report, ensure_ascii=False, indent=2))
    else:
        print_report(report)


@contextmanager
def progress_bar(size: int) -> Iterator[Progress]:
    """Two bars on stderr: text read (of `size` bytes, about as many characters) and tokens found.

    Where stderr is no terminal, a line every half minute.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield plain_progress()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        reading = bar.add_task("characters read", total=size)
        merging = bar.add_task("tokens found", total=None, visible=False)

        def progress(phase: str, done: int, of: int | None) -> None:
            if phase == "reading":
                bar.update(reading, completed=done)
            else:
                bar.update(reading, visible=False)
                bar.update(merging, completed=done, total=of, visible=True)

        yield progress


def plain_progress() -> Progress:
    said = time.monotonic()

    def progress(phase: str, done: int, of: int | None) -> None:
        nonlocal said
        if time.monotonic() - said >= HEARTBEAT:
            said = time.monotonic()
            what = f"{done:,} characters read" if phase == "reading" else f"{done:,} of {of:,} tokens found"
            print(what, file=sys.stderr, flush=True)

    return progress


def as_dictionary(trained: TrainedBPE, tokenizer: Tokenizer, output: Path, seconds: float) -> dict[str, Any]:
    """What `train` tells, for scripts."""
    counted = trained.counted
    occurrences = sum(counted.pretokens.values())
    return {
        "output": str(output),
        "vocab_size": tokenizer.vocab_size,
        "merges": len(trained.merges),
        "special_tokens": trained.special_tokens,
        "pattern": trained.split,
        "characters": counted.characters,
        "pretokens": occurrences,
        "different_pretokens": len(counted.pretokens),
        "dropped_pretokens": counted.dropped_pretokens,
        "dropped_occurrences": counted.dropped_occurrences,
        "longest_tokens": [token.decode("utf-8", "backslashreplace") for token in longest(trained.vocab)],
        "seconds": round(seconds, 2),
        "llama_cpp": unexpressible(tokenizer) or "can express it",
    }


def longest(vocab: dict[bytes, int]) -> list[bytes]:
    return sorted(vocab, key=lambda token: (-len(token), vocab[token]))[:5]


def unexpressible(tokenizer: Tokenizer) -> str | None:
    """What of the tokenizer llama.cpp cannot express (promise M3); None when it can."""
    from pellucid.checkpoints.gguf_vocabulary import vocabulary_metadata

    try:
        vocabulary_metadata(tokenizer, tokenizer.vocab_size)
    except InputError as error:
        return str(error)
    return None


def print_report(report: dict[str, Any]) -> None:
    rate = report["characters"] / 1e6 / max(report["seconds"], 0.01)
    print(
        f"{report['output']}: {report['vocab_size']:,} tokens ({report['merges']:,} merges) "
        f"from {report['characters']:,} characters in {report['seconds']} s ({rate:.1f} million characters/s)"
    )
    print(f"pre-tokens: {report['pretokens']:,}, {report['different_pretokens']:,} of them different")
    print(f"longest tokens: {', '.join(map(repr, report['longest_tokens']))}")
    if report["dropped_pretokens"]:
        print(
            f"to stay within --memory, {report['dropped_pretokens']:,} rare pre-tokens were dropped "
            f"({report['dropped_occurrences']:,} occurrences); raise it to count them"
        )
    if report["llama_cpp"] != "can express it":
        print(f"warning: this tokenizer cannot be written to GGUF: {report['llama_cpp']}", file=sys.stderr)


def encode(
    tokenizer: Annotated[str, typer.Argument(help="A folder, a tokenizer or .gguf file, a hub id, or smollm2.")],
    text: Annotated[str | None, typer.Option("--text", "-t", "-p", help="The text; else standard input.")] = None,
    allow_special: Annotated[
        bool, typer.Option("--allow-special", help="Let text that spells a control token make it.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show the tokens of a text: their pieces in colour, and their ids.

    Example: pellucid tokenizer encode smollm2 -p "How many tokens is this?"
    """
    from pellucid.cli.tokenizer import open_tokenizer
    from pellucid.tokenizer.compare import readable

    opened = open_tokenizer(tokenizer)
    if text is None:
        text = read_stdin()
    ids = opened.encode(text, allow_special=allow_special)
    pieces = [readable(opened.token_bytes(token)) for token in ids]
    if as_json:
        print(json.dumps({"text": text, "ids": ids, "pieces": pieces, "tokens": len(ids)}, ensure_ascii=False))
    else:
        from rich.console import Console

        print_tokens(ids, pieces, len(text), Console())


def read_stdin() -> str:
    given = sys.stdin.buffer.read()
    try:
        return given.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not UTF-8: see the byte at {error.start}; convert it first") from None


def print_tokens(ids: list[int], pieces: list[str], characters: int, console: Console) -> None:
    from pellucid.cli.tokenizer import in_colour

    console.print(in_colour(tuple(pieces), console.is_terminal))
    console.print(" ".join(map(str, ids)), highlight=False, soft_wrap=not console.is_terminal)
    ratio = f", {characters / len(ids):.2f} characters a token" if ids else ""
    console.print(f"{len(ids):,} tokens{ratio}", highlight=False)
