"""What the commands that train share: recipe and overrides, lines to people, how a run ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pellucid.models.decoder import Decoder
    from pellucid.tokenizer.tokenizer import Tokenizer
    from pellucid.training.loop import Outcome

RecipeFile = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file; see the folder recipes/.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[FIELD=VALUE]...", help="Fields of the recipe to set, such as optim.lr=3e-4.", show_default=False
    ),
]


def say(text: str) -> None:
    """A line on stderr: what is found and chosen on the way. It takes the place of a line that `preparing` moves."""
    import sys

    typer.echo(f"\r{text}\x1b[K" if sys.stderr.isatty() else text, err=True)


def preparing() -> Callable[[str, int, int | None], None]:
    """Shows how far tokenizer and shards are: a line that moves on a terminal, one every ten seconds elsewhere."""
    import sys
    import time

    state = {"shown": time.monotonic(), "width": 0}
    terminal = sys.stderr.isatty()

    def show(phase: str, done: int, of: int | None) -> None:
        now = time.monotonic()
        if now - state["shown"] < (0.2 if terminal else 10):
            return
        state["shown"] = now
        text = f"{phase} {done:,}" + (f" of {of:,}" if of else "")
        typer.echo(f"\r{text}\x1b[K" if terminal else text, err=True, nl=not terminal)

    return show


def sample(model: Decoder, tokenizer: Tokenizer, prompts: Sequence[str], tokens: int) -> list[str]:
    """The most likely continuation of each prompt, of a model in training."""
    from pellucid.inference.engine import Engine
    from pellucid.inference.output import answer_all
    from pellucid.inference.params import SamplingParams

    ids = [tokenizer.encode(prompt, add_bos=tokenizer.adds_bos) for prompt in prompts]
    engine = Engine(model, tokenizer, max_sequences=len(ids), native=False)  # its parameters are still to be trained
    return [one.text for one in answer_all(engine, ids, SamplingParams(temperature=0, max_tokens=tokens))]


def finish(outcome: Outcome, run: str, use: str) -> int:
    """Says how the run ended, and `use`, a command that takes its model; the exit status.

    Of several processes only the first says it.
    """
    import os

    if int(os.environ.get("RANK", "0")) > 0:
        return 0 if outcome.signal is None else 128 + outcome.signal
    if outcome.signal is not None:
        say(f"stopped after step {outcome.steps:,} and saved: the same command goes on from there")
        return 128 + outcome.signal
    loss = "" if outcome.loss is None else f", loss {outcome.loss:.3f}"
    seen = outcome.validation
    held = "" if seen is None else f"; validation loss {seen.loss:.3f}, perplexity {seen.perplexity:.2f}"
    bits = "" if seen is None or seen.bits_per_byte is None else f", {seen.bits_per_byte:.3f} bits per byte"
    typer.echo(f"{run}: {outcome.steps:,} steps, {outcome.tokens:,} tokens{loss}{held}{bits}")
    for line in outcome.expected:
        typer.echo(line)
    typer.echo(f"at most {outcome.memory / 1e6:,.0f} MB of memory, {outcome.seconds:,.0f} s of training")
    typer.echo(f"Go on: {use}, pellucid show {run}; the curves are in {run}/loss.svg")
    return 0
