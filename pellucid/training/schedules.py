"""Learning-rate schedules: what each step's rate is, as a fraction of the recipe's, from nothing but its number."""

from __future__ import annotations

import math

from pellucid.errors import InputError
from pellucid.training.recipe import OptimRecipe


def scale(optim: OptimRecipe, step: int, steps: int) -> float:
    """The factor in [0, 1] for the rates of step number `step` (from 0) of a run of `steps` steps.

    It rises in a straight line over `optim.warmup` steps and then follows `optim.schedule`: `constant` stays,
    `cosine` and `wsd` are at `optim.final` in the last step, and stay there.

    Raises `InputError` where the warm-up takes the whole run.
    """
    if optim.warmup >= steps:
        raise InputError(
            f"optim.warmup = {optim.warmup} steps leave nothing of a run of {steps} steps: lower it, or train longer"
        )
    done = min(step + 1, steps)  # steps, this one among them
    if done <= optim.warmup:
        return done / optim.warmup
    if optim.schedule == "constant":
        return 1.0
    if optim.schedule == "cosine":
        return optim.final + (1 - optim.final) * cosine((done - optim.warmup) / (steps - optim.warmup))
    # Warm up, stay, decay (MiniCPM, Hu et al. 2024)
    start = max(optim.warmup, steps * (1 - optim.decay))
    return optim.final + (1 - optim.final) * cooldown(max(0.0, (done - start) / (steps - start)))


def cosine(progress: float) -> float:
    """From 1 to 0 as `progress` goes from 0 to 1: (1 + cos(pi p)) / 2 (SGDR, Loshchilov & Hutter 2017, eq. 5)."""
    return (1 + math.cos(math.pi * progress)) / 2


def cooldown(progress: float) -> float:
    """From 1 to 0 as `progress` goes from 0 to 1: 1 - sqrt(p), better than a line (Hägele et al. 2024)."""
    return 1 - math.sqrt(progress)
