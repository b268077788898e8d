"""What the commands that run a model share: the sampling flags, opening the model, and a line that says how it runs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pellucid.models.decoder import Decoder
    from pellucid.tokenizer.tokenizer import Tokenizer

SAMPLING = "Sampling"

Model = Annotated[str, typer.Argument(help="A model folder, a .gguf file, a hub id, or the packaged model smollm2.")]
Dtype = Annotated[str, typer.Option(help="auto (the faster one here, measured), float32, bfloat16 or float16.")]
Preset = Annotated[
    str | None, typer.Option(help="factual, balanced or creative: values by task.", rich_help_panel=SAMPLING)
]
MaxTokens = Annotated[
    int | None, typer.Option(help="The most tokens an answer may have.", rich_help_panel=SAMPLING, show_default=False)
]
Temperature = Annotated[
    float | None,
    typer.Option(help="0: always the most likely token; 1: the model's own distribution.", rich_help_panel=SAMPLING),
]
TopK = Annotated[
    int | None, typer.Option(help="Draw among the k most likely tokens; 0: off.", rich_help_panel=SAMPLING)
]
TopP = Annotated[
    float | None,
    typer.Option(help="Draw among the likeliest tokens that add up to p; 1: off.", rich_help_panel=SAMPLING),
]
MinP = Annotated[
    float | None,
    typer.Option(help="Draw among tokens this fraction as likely as the likeliest; 0: off.", rich_help_panel=SAMPLING),
]
RepetitionPenalty = Annotated[
    float | None, typer.Option(help="Above 1: what was read or said gets less likely.", rich_help_panel=SAMPLING)
]
PresencePenalty = Annotated[
    float | None, typer.Option(help="Taken once off tokens of the answer so far.", rich_help_panel=SAMPLING)
]
FrequencyPenalty = Annotated[
    float | None, typer.Option(help="Taken off tokens of the answer for each time.", rich_help_panel=SAMPLING)
]
Stop = Annotated[
    list[str] | None,
    typer.Option(help="End the answer before this text; may be given again.", rich_help_panel=SAMPLING),
]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same answer.", rich_help_panel=SAMPLING)]


def open_model(name: str, dtype: str, *, packed: bool = True) -> tuple[Decoder, Tokenizer]:
    """Load a model in the precision that is asked for or fastest here, and say on stderr which that is, and why.

    packed: for the reference generator; the engine has kernels of its own.
    """
    import torch

    from pellucid.checkpoints.load import load
    from pellucid.checkpoints.source import find_source
    from pellucid.operations.hardware import best_precision, use_best_threads
    from pellucid.operations.linear import describe_linear

    find_source(name)  # a wrong name is said before anything is measured
    threads, precision = use_best_threads(), best_precision(dtype)
    started = time.perf_counter()
    model, tokenizer = load(name, dtype=precision.name)
    plain = model.pack_for_inference() if packed else None
    seconds = time.perf_counter() - started
    kernels = f"PyTorch's, because {plain}" if plain else describe_linear(getattr(torch, precision.name))
    linear = f" linear layers: {kernels};" if packed else ""
    note(f"{name}, loaded in {seconds:.1f} s; {precision.reason};{linear} {threads.count} threads")
    return model, tokenizer


def note(text: str) -> None:
    """A dim line on stderr, beside the output that a script reads."""
    from rich.console import Console

    Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(text, style="dim")
