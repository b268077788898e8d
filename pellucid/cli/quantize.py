"""`pellucid quantize`: a model's matrices in few bits, written where other programs read them, and what it cost."""

from __future__ import annotations

import json
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pellucid.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

    from pellucid.checkpoints.source import Source
    from pellucid.cli.phases import Show
    from pellucid.layers.quantised import Blocks
    from pellucid.models.decoder import Decoder

METHODS = ("gptq", "rtn")
CALIBRATION_ROWS = 16  # of 512 tokens


def quantize(
    source: Annotated[str, typer.Argument(help="A model folder, a .gguf file, a hub id or a packaged name (smollm2).")],
    target: Annotated[Path, typer.Argument(help="A folder to write, or a file whose name ends in .gguf.")],
    scheme: Annotated[str, typer.Option(help="int8 or int4, or GGUF's q8_0, q4_0 or q4_1.")] = "int4",
    method: Annotated[
        str | None,
        typer.Option(
            help="gptq: errors are made up for by the weights that follow; rtn: round to nearest. "
            "Default: gptq for 4 bits, rtn for 8."
        ),
    ] = None,
    calibrate: Annotated[
        str | None,
        typer.Option(help="Text for gptq: a file, a folder or bundled:NAME. Default: what the model writes itself."),
    ] = None,
    report: Annotated[bool, typer.Option("--report", help="Measure what it cost and brought.")] = False,
    text: Annotated[
        str | None, typer.Option(help="What the report is measured on. Default: bundled:state-of-the-union.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The report as one JSON object.")] = False,
) -> None:
    """Write a model with its matrices in few bits: int8 or int4, with a scale for each 32 weights.

    A folder is safetensors in the layout of compressed-tensors, which vLLM opens, and transformers (int4 with
    dequantize=True); a name in .gguf makes a GGUF file, which llama.cpp opens. pellucid runs both as they lie, where
    its native code compiles. What is there is replaced only if it is a model.

    Example: pellucid quantize smollm2 smollm2-int4 --scheme int4 --report
    """
    from pellucid.checkpoints.source import bytes_on_disk, find_source
    from pellucid.cli.phases import noting, phases
    from pellucid.cli.quantised import print_report
    from pellucid.cli.show import size
    from pellucid.inference.quantisation.report import measure, rows_to_judge
    from pellucid.models.quantised import parse_scheme
    from pellucid.operations.hardware import use_best_threads

    format, found = parse_scheme(scheme), find_source(source)  # noqa: A001
    if found.kind == "adapter":
        raise InputError(f"{source} is an adapter: write the merged model first (pellucid convert {source} FOLDER)")
    method = method or ("rtn" if format == "Q8_0" else "gptq")
    check_options(method, calibrate, text, report or as_json)
    check_places(found, target)
    use_best_threads()
    rows = rows_to_judge(str(found.path), text) if report or as_json else None  # read before minutes of work
    started = time.perf_counter()
    with noting(), phases() as show:
        make(str(found.path), found, target, format, method, calibrate, show)
    if not as_json:
        sizes = f"{size(bytes_on_disk(found.path))} -> {target}: {size(bytes_on_disk(target))}"
        print(f"{source}: {sizes}, {format} by {method}, in {time.perf_counter() - started:.0f} s", flush=True)
    if rows is None:
        return
    with noting(), phases() as show:
        told = measure(str(found.path), target, rows, text, show)
    if as_json:
        print(json.dumps({"scheme": format, "method": method, **asdict(told)}, indent=2))
    else:
        print_report(told)


def check_options(method: str, calibrate: str | None, text: str | None, reporting: bool) -> None:
    """`InputError` for options that do not exist or do not go together, and for texts that are not there."""
    from pellucid.data.sources import find_files

    if method not in METHODS:
        raise InputError(f"method = {method!r}: it must be one of {', '.join(METHODS)}{did_you_mean(method, METHODS)}")
    if calibrate is not None and method == "rtn":
        raise InputError("--calibrate is for --method gptq: rounding to nearest learns from no text")
    if text is not None and not reporting:
        raise InputError("--text is what the report is measured on: add --report")
    for name in (calibrate, text):
        if name is not None:
            find_files([name])


def check_places(source: Source, target: Path) -> None:
    """`InputError` where the target is the source, or something else than a model."""
    from pellucid.checkpoints.atomic import check_replaceable
    from pellucid.checkpoints.gguf_save import check_replaceable_file
    from pellucid.checkpoints.save import MODEL_FILES

    if target.exists() and target.resolve() == source.path.resolve():
        raise InputError(f"{target} is the model itself: give another name for the quantised one")
    if target.suffix == ".gguf":
        check_replaceable_file(target)
    else:
        check_replaceable(target, MODEL_FILES, "config.json", "a model folder")


def make(
    name: str,
    source: Source,
    target: Path,
    format: str,  # noqa: A002
    method: str,
    calibrate: str | None,
    show: Show,
) -> None:
    """Reads, quantises and writes the model."""
    import torch

    from pellucid.checkpoints.compressed import linear_layers, names_in
    from pellucid.checkpoints.describe import base_of, describe
    from pellucid.checkpoints.gguf_save import save_gguf
    from pellucid.checkpoints.load import load
    from pellucid.checkpoints.save import About, save
    from pellucid.inference.quantisation.quantise import quantise
    from pellucid.inference.quantisation.report import working_dtype
    from pellucid.inference.quantisation.rounding import Grid
    from pellucid.models.families import family_of

    to_gguf = target.suffix == ".gguf"
    described = describe(name)
    say_what_was_lost(name, described.stored, format, copied=to_gguf and source.kind == "gguf")
    if not to_gguf:  # whether the family's layout can hold it is said before minutes of work
        names_in(described.config, family_of(described.config), linear_layers(described.config))
    about = About(base=base_of(source))
    rows = calibration(name, calibrate, show) if method == "gptq" else None
    show("reading", 0, 1)
    model, tokenizer = load(name, dtype=working_dtype(name))
    blocks = quantise(
        model,
        Grid(format, short=not to_gguf),
        rows,
        embedding=to_gguf,
        progress=lambda done, of: show("quantising", done, of),
    )
    say_what_stays(model, blocks, to_gguf)
    show("writing", 0, 1)
    if to_gguf:
        save_gguf(model, tokenizer, target, kind=format, about=about, blocks=blocks)
    else:
        half = torch.float16 if described.dtype == torch.float16 else torch.bfloat16
        save(model.to(half), tokenizer, target, about=about, blocks=blocks)


def calibration(name: str, calibrate: str | None, show: Show) -> Tensor:
    """The text that GPTQ learns from, as rows of token ids: what was given, or what the model writes itself."""
    from pellucid.inference.quantisation.report import as_it_runs
    from pellucid.inference.quantisation.texts import own_rows, read_rows, row_length

    show("reading", 0, 1)
    model, tokenizer = as_it_runs(name)  # not the one that is quantised: an engine may rearrange the weights
    length = row_length(model.config)
    if calibrate is not None:
        return read_rows(calibrate, tokenizer, length, CALIBRATION_ROWS)
    return own_rows(
        model,
        tokenizer,
        length,
        CALIBRATION_ROWS,
        progress=lambda done, of: show("writing a text to learn from", done, of),
    )


def say_what_was_lost(name: str, stored: dict[str, int], format: str, *, copied: bool) -> None:  # noqa: A002
    """A note where the source is in few bits already. `InputError` where it would only be copied.

    copied: the target is a file of the source's own kind.
    """
    from pellucid.checkpoints.folder import DTYPES

    few = [form for form in stored if form not in DTYPES]
    if copied and few == [format]:
        raise InputError(f"{name} is in {format} already: copy it, or choose another scheme")
    if few:
        warnings.warn(
            f"{name} is in {', '.join(few)} already: it is widened first, and what was lost then stays lost",
            stacklevel=2,
        )


def say_what_stays(model: Decoder, blocks: dict[str, Blocks], to_gguf: bool) -> None:
    """A note about the matrices that are not in few bits."""
    from pellucid.models.quantised import is_matrix

    kept = [name for name, weight in model.named_parameters() if is_matrix(name, weight) and name not in blocks]
    if "embedding.weight" in kept and not to_gguf:
        tied = ", which is the head's matrix too," if model.config.tie_embeddings else ""
        warnings.warn(
            f"the embedding{tied} stays in 16 bits, as the layout wants it: a .gguf file has it in few bits too",
            stacklevel=2,
        )
        kept.remove("embedding.weight")
    if kept:
        warnings.warn(
            f"{len(kept)} matrices stay in 16 bits, because their rows are no multiple of 32 ({kept[0]!r} is one)",
            stacklevel=2,
        )
