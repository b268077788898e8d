"""`pellucid convert`: from any model that loads to a Hugging Face folder or a GGUF file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pellucid.errors import InputError

if TYPE_CHECKING:
    from rich.status import Status

    from pellucid.checkpoints.save import About
    from pellucid.models.adapters import Merged
    from pellucid.models.decoder import Decoder
    from pellucid.tokenizer.tokenizer import Tokenizer


def convert(
    source: Annotated[str, typer.Argument(help="A model folder, a .gguf file, a hub id or a packaged name (smollm2).")],
    target: Annotated[Path, typer.Argument(help="A folder to write, or a file whose name ends in .gguf.")],
    dtype: Annotated[
        str | None, typer.Option(help="Of a folder's weights: float32, bfloat16 or float16. Default: the source's own.")
    ] = None,
    type_: Annotated[
        str | None,
        typer.Option("--type", help="Of a GGUF file's matrices: f32, f16, bf16, q8_0, q4_0 or q4_1. Default: f16."),
    ] = None,
) -> None:
    """Write a model as a Hugging Face folder, which transformers opens, or as a GGUF file, which llama.cpp opens.

    The target's name decides: .gguf makes a GGUF file. What is there is replaced only if it is a model. An adapter is
    merged into its base, and the difference that this makes is measured.

    Examples: pellucid convert smollm2 folder/     pellucid convert folder/ model.gguf --type q8_0
    """
    to_gguf = target.suffix == ".gguf"
    if to_gguf and dtype is not None:
        raise InputError("--dtype is of folders; the numbers of a GGUF file are chosen with --type")
    if not to_gguf and type_ is not None:
        raise InputError(f"--type is of GGUF files, and {target} is to be a folder; use --dtype, or a name in .gguf")

    from pellucid.checkpoints.describe import base_of
    from pellucid.checkpoints.gguf_save import parse_kind
    from pellucid.checkpoints.load import load
    from pellucid.checkpoints.save import About, save
    from pellucid.checkpoints.source import bytes_on_disk, find_source
    from pellucid.cli.phases import noting
    from pellucid.cli.show import size
    from pellucid.inference.quantisation.texts import read_rows, row_length
    from pellucid.models.adapters import adapter_names, merge_adapter

    kind, found = parse_kind(type_ or "f16"), find_source(source)
    started = time.perf_counter()
    with noting():
        with busy(f"reading {source}"):
            model, tokenizer = load(source, dtype=dtype or "auto")
        for name in adapter_names(model):
            with busy("merging the adapter"):
                text = read_rows("bundled:state-of-the-union", tokenizer, row_length(model.config), rows=1)
                merged = merge_adapter(model, name, text)
            print(merged_line(merged, str(model.dtype).removeprefix("torch."), text.numel()))
        about = About(base=base_of(found))
        if to_gguf:
            write_file(model, tokenizer, target, kind, about)
        else:
            with busy(f"writing {target}"):
                save(model, tokenizer, target, about=about)
    before, after = bytes_on_disk(found.path), bytes_on_disk(target)
    print(f"{source}: {size(before)} -> {target}: {size(after)}, in {time.perf_counter() - started:.1f} s")


def merged_line(merged: Merged, dtype: str, tokens: int) -> str:
    """What merging an adapter changed."""
    return (
        f"merged into its base in {dtype}: on {tokens} tokens of text no logit moved by more than {merged.largest:.2g} "
        f"(the largest is {merged.spread:.3g}), and {merged.agreement:.1%} of the likeliest tokens are the same"
    )


def busy(what: str) -> Status:
    """A line on stderr that says what is going on, while it does."""
    from rich.console import Console

    return Console(stderr=True).status(what)


def write_file(model: Decoder, tokenizer: Tokenizer, target: Path, kind: str, about: About) -> None:
    """Writes the GGUF file under a progress bar with its rate and the time left."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    from pellucid.checkpoints.gguf_save import save_gguf

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True))
    rate = (TransferSpeedColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, *rate, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"writing {target.name}")
        save_gguf(
            model,
            tokenizer,
            target,
            kind=kind,
            about=about,
            progress=lambda written, whole: bar.update(task, completed=written, total=whole),
        )
