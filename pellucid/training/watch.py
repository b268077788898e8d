"""What stops a run before it is spoilt: a loss or gradient that is not finite, a loss that explodes (promise D9)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pellucid.data.examples import BatchOfRows
from pellucid.errors import PellucidError
from pellucid.models.decoder import Decoder

SMOOTHING = 0.95  # of the running mean
NOWHERE = "seen nowhere else"
FIRST = 20  # steps before a loss can be said to explode


@dataclass
class Watch:
    """The running mean of the loss, and how far above it (in nats) a loss may be."""

    allowed: float
    mean: float = 0.0
    seen: int = 0

    def check(
        self, step: int, loss: float, norm: float, rows: range, blame: Callable[[], str], look: str | None = None
    ) -> None:
        """Raises `PellucidError` that names the step, the rows of the batch and where it went wrong, if it did.

        look: where to look then; None: at the rows of the data. Nothing has been learnt from the batch by then.
        """
        look = look or f"look at those rows (pellucid data show RECIPE --first {rows.start})"
        batch = f"step {step}, whose batch is rows {rows.start} to {rows.stop - 1} of the data"
        if not math.isfinite(loss) or not math.isfinite(norm):
            what = "loss" if not math.isfinite(loss) else "gradient"
            raise PellucidError(
                f"the {what} is not finite at {batch} ({blame()}): nothing of it was learnt or saved; {look}, or "
                "begin another run with a smaller optim.lr"
            )
        if self.seen >= FIRST and loss > self.mean + self.allowed:
            raise PellucidError(
                f"the loss jumped from {self.mean:.2f} to {loss:.2f} at {batch}: {look}, begin another run "
                "with a smaller optim.lr, or allow more by train.explode and go on"
            )
        self.seen += 1
        # m_t = b m_{t-1} + (1 - b) x_t, with the bias of its start taken off (Adam, Kingma & Ba 2015, algorithm 1)
        weight = max(1 / self.seen, 1 - SMOOTHING)
        self.mean += weight * (loss - self.mean)


def check_weights(model: nn.Module, step: int) -> None:
    """Raises `PellucidError` that names a parameter which the step has spoilt: such a model is not to be saved."""
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise PellucidError(
                f"step {step} left weights in {name} that are not finite, and they were not saved: begin another run "
                "with a smaller optim.lr"
            )


@torch.no_grad()
def blame(model: Decoder, examples: BatchOfRows, autocast: torch.dtype | None) -> str:
    """Where something that is not finite is first seen: a parameter, the output of a module, or a gradient."""
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            return f"first seen in the weights {name}"
    mixed = torch.autocast(examples.tokens.device.type, autocast, enabled=autocast is not None)
    with listening(model) as seen, mixed, torch.compiler.set_stance("force_eager"):
        model.logits(model.hidden(examples.tokens, examples.batch))
    if seen:
        return f"first seen in what {seen[0]} gives"
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            return f"first seen in the gradient of {name}"
    return NOWHERE


@contextmanager
def listening(model: nn.Module) -> Iterator[list[str]]:
    """The names of the modules whose output is not finite, in the order in which they compute."""
    seen: list[str] = []

    def hook(name: str) -> Callable[[nn.Module, object, object], None]:
        def note(module: nn.Module, inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and not output.isfinite().all():
                seen.append(name)

        return note

    handles = [module.register_forward_hook(hook(name)) for name, module in model.named_modules() if name]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
