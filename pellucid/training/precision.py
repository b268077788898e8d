"""The precision that a model is trained in: float32, or the products in bfloat16 with float32 weights (autocast,
Micikevicius et al. 2018), whichever takes a step in less time here."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from pellucid.operations.ceilings import Trial, in_turn
from pellucid.operations.hardware import CANDIDATES, Precision, asked_precision, fastest, once

# The trial step: one linear layer of a small model, forward and backward.
TRIAL_TOKENS, TRIAL_IN, TRIAL_OUT = 2048, 512, 2048
ROUNDS = 4  # of which the first warms up


def best_training_precision(override: str | None = None, *, remeasure: bool = False) -> Precision:
    """The precision in which this machine trains fastest, and why.

    `override`, else the environment's `PELLUCID_PRECISION`, decides if it is set and not "auto". Otherwise a trial
    step is timed in each candidate (half a second; two where bfloat16 is slow), once for each processor, torch
    version and thread count. It is not the precision that answers fastest: there the memory decides, here the
    products, and the weights have to be rounded anew in every step.

    Raises `InputError` for any other precision: the small gradients of float16 would have to be scaled.
    """
    if asked := asked_precision(override, CANDIDATES):
        return asked
    what = f"training precision with {torch.get_num_threads()} threads"
    trial, how = once(what, CANDIDATES, lambda: time_training(CANDIDATES), remeasure)
    seconds, name = trial.seconds, fastest(trial.seconds, unless="float32")
    (other,) = set(CANDIDATES) - {name}
    times = f"{1e3 * seconds[name]:.0f} ms for a trial step, {other} {1e3 * seconds[other]:.0f} ms"
    return Precision(name, f"{name}: {times} ({how})", seconds)


def time_training(precisions: Sequence[str]) -> Trial:
    """Time the trial step in each precision, each the best of `ROUNDS`, measured in turn."""
    return in_turn({name: trial_step(getattr(torch, name)) for name in precisions}, ROUNDS)


def trial_step(dtype: torch.dtype) -> Callable[[], float]:
    """Times three products, x W^T and the gradients of x and W, with x and W in float32; returns seconds."""
    x = torch.full((TRIAL_TOKENS, TRIAL_IN), 0.5, requires_grad=True)
    weight = torch.full((TRIAL_OUT, TRIAL_IN), 0.5, requires_grad=True)
    gradient = torch.full((TRIAL_TOKENS, TRIAL_OUT), 0.5, dtype=dtype)

    def seconds() -> float:
        x.grad = weight.grad = None
        started = time.perf_counter()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            y = F.linear(x, weight)
        y.backward(gradient)
        return time.perf_counter() - started

    return seconds
