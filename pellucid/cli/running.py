"""What the commands that run a model share: opening it, its engine, and the lines that say how it runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pellucid.cli.timeline import Timeline
    from pellucid.inference.engine import Engine
    from pellucid.models.decoder import Decoder
    from pellucid.tokenizer.tokenizer import Tokenizer

Model = Annotated[str, typer.Argument(help="A model folder, a .gguf file, a hub id, or the packaged model smollm2.")]
Dtype = Annotated[str, typer.Option(help="auto (the faster one here, measured), float32, bfloat16 or float16.")]
Quantize = Annotated[
    str | None,
    typer.Option(
        help="Round weights: int8, int4 (or q8_0, q4_0, q4_1). Without it and --dtype they stay as the file has them."
    ),
]
Deterministic = Annotated[
    bool,
    typer.Option(
        "--deterministic",
        help="Log-probabilities are the same to the last bit whatever else is under way, or it is refused.",
    ),
]

Int8Cache = Annotated[
    bool,
    typer.Option(
        "--int8-cache", help="Keep keys and values as bytes: half the memory of bfloat16, a quarter of float32's."
    ),
]


def open_model(name: str, dtype: str, timeline: Timeline, quantize: str | None = None) -> tuple[Decoder, Tokenizer]:
    """Load a model in the precision that is asked for or fastest here, and say on stderr which that is, and why.

    quantize: as for `checkpoints.load.to_run`.
    """
    from pellucid.checkpoints.assemble import STORED, parse_quantize
    from pellucid.checkpoints.load import load, to_run
    from pellucid.checkpoints.source import find_source
    from pellucid.inference import engine, output  # noqa: F401 (so that the import of the rest is timed here too)
    from pellucid.operations import step
    from pellucid.operations.hardware import best_precision, use_best_threads

    timeline.end("imports")
    find_source(name)  # a wrong name is said before anything is measured
    parse_quantize(quantize)
    step.library()
    timeline.end("native code")
    threads, precision = use_best_threads(), best_precision(dtype)
    timeline.end("precision")
    how = to_run(quantize, dtype)
    model, tokenizer = load(name, dtype=precision.name, quantize=how)
    timeline.end("load")
    note(f"{name}: {weights_line(model, as_stored=how == STORED)}; {precision.reason}; {threads.count} threads")
    return model, tokenizer


def weights_line(model: Decoder, *, as_stored: bool) -> str:
    """What the weights take, and in which form. as_stored: the form of those in blocks is the file's own."""
    from pellucid.cli.show import size
    from pellucid.models.quantised import weight_bytes

    parts = ", ".join(f"{size(count)} in {form}" for form, count in weight_bytes(model).items())
    return f"weights {parts}" + (", as they lie in the file" if as_stored and model.quantised else "")


def open_engine(
    name: str,
    dtype: str,
    timeline: Timeline,
    *,
    quantize: str | None = None,
    draft: str | None = None,
    adapters: Mapping[str, str] | None = None,
    **options: Any,
) -> Engine:
    """The engine of a model, and a line on stderr that says what computes its steps. draft: the name of its draft
    model; adapters: as for `LLM`; options: see `Engine`."""
    from pellucid.checkpoints.source import find_source

    if draft is not None:
        find_source(draft)  # a wrong name is said before the model is loaded
    if adapters:
        from pellucid.inference.llm import adapter_folder, add_adapters

        for one, folder in adapters.items():
            adapter_folder(one, folder)  # and so is a wrong folder
    model, tokenizer = open_model(name, dtype, timeline, quantize)
    if adapters:
        add_adapters(model, tokenizer, adapters)
        note(f"adapters: {', '.join(adapters)}")
    guesser = None
    if draft is not None:
        guesser = open_model(draft, dtype, timeline)
        timeline.end("draft")
    from pellucid.inference.engine import Engine

    engine = Engine(model, tokenizer, draft=guesser, **options)
    if engine.runner.gpu is not None:
        note(f"steps: {engine.runner.how}")
    elif reason := engine.runner.why_not:
        note(f"no native step, but PyTorch's: {reason}")
    timeline.end("engine")
    return engine


def note(text: str) -> None:
    """A dim line on stderr, beside the output that a script reads."""
    from rich.console import Console

    Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(text, style="dim")
