"""On what and how a run computes: device, precision, threads, compiled or not. Chosen by measurement, then kept.

A checkpoint records the choice, and a run that goes on from it does not choose again: its numbers stay the same.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from pellucid.errors import InputError
from pellucid.layers.lora import Adapter
from pellucid.models.config import ModelConfig
from pellucid.models.decoder import Decoder
from pellucid.operations.ceilings import matmul_rate
from pellucid.operations.hardware import CANDIDATES, use_best_threads
from pellucid.training.costs import training_flops
from pellucid.training.precision import best_training_precision
from pellucid.training.ranks import Ranks
from pellucid.training.recipe import Recipe

WORTH_COMPILING = 600.0  # seconds of training, at the ceiling: compiling takes half a minute, and saves a little


@dataclass(frozen=True, slots=True)
class Setting:
    """dtype: of the products; the weights are always float32. ceiling: GFLOP/s of a plain product in it, as measured
    when the process began; None where it was not. reasons: a line on each choice, for people."""

    device: torch.device
    dtype: torch.dtype
    compiled: bool
    threads: int
    processes: int = 1
    ceiling: float | None = None
    reasons: tuple[str, ...] = ()

    @property
    def autocast(self) -> torch.dtype | None:
        """The type of products, where it is not that of the weights."""
        return None if self.dtype == torch.float32 else self.dtype

    def as_json(self) -> dict[str, Any]:
        """What a resume has to keep."""
        return {
            "precision": name_of(self.dtype),
            "compiled": self.compiled,
            "threads": self.threads,
            "processes": self.processes,
        }


def choose_setting(
    recipe: Recipe, config: ModelConfig, steps: int, ranks: Ranks, recorded: Mapping[str, Any] | None
) -> Setting:
    """The setting of a run; threads are set from here on. recorded: what `as_json` gave when the run began.

    Raises `InputError` where compiling is asked for and cannot be.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    threads = _set_threads(ranks, recorded)
    if recorded is not None:
        precision, why = recorded["precision"], f"{recorded['precision']}, as the run began"
    else:
        chosen = best_training_precision(recipe.precision)
        precision, why = chosen.name, chosen.reason
        agreed = ranks.agree(CANDIDATES.index(precision) if ranks.first else None)
        assert agreed is not None
        precision = CANDIDATES[agreed]
    dtype: torch.dtype = getattr(torch, precision)
    ceiling = max(matmul_rate(dtype) for _ in range(2)) if device.type == "cpu" else None
    compiled, why_compiled = _compiled(recipe, config, steps, ceiling, device, recorded)
    reasons = (f"precision {why}", f"threads {threads}", f"compiled {'yes' if compiled else 'no'}: {why_compiled}")
    return Setting(device, dtype, compiled, torch.get_num_threads(), ranks.world, ceiling, reasons)


def _set_threads(ranks: Ranks, recorded: Mapping[str, Any] | None) -> str:
    """As many threads as the run began with, where it goes on with as many processes and there are so many cores."""
    if recorded is not None:
        threads = recorded["threads"]  # in each process
        if recorded["processes"] == ranks.world and threads <= (os.cpu_count() or 1):
            torch.set_num_threads(threads)
            return f"{threads}, as the run began"
        warnings.warn(
            f"the run began with {recorded['processes']} x {threads} threads and goes on with {ranks.world} processes "
            f"on {os.cpu_count()} cores, so its numbers may differ in the last bits",
            stacklevel=3,
        )
    return use_best_threads().reason


def _compiled(
    recipe: Recipe,
    config: ModelConfig,
    steps: int,
    ceiling: float | None,
    device: torch.device,
    recorded: Mapping[str, Any] | None,
) -> tuple[bool, str]:
    """Whether to compile, and why or why not."""
    reason = why_not_compile(device)
    if recorded is not None:
        if recorded["compiled"] and reason is not None:
            raise InputError(f"the run began compiled, but now {reason}: install one to go on with it")
        return recorded["compiled"], "as the run began"
    if recipe.compile == "off":
        return False, "the recipe says off"
    if recipe.compile == "on":
        if reason is not None:
            raise InputError(f"compile = on, but {reason}: install one, or set compile=off")
        return True, "the recipe says on"
    if reason is not None:
        return False, reason
    if ceiling is None:
        return True, "on a GPU"
    tokens = steps * recipe.train.batch * recipe.data.context
    seconds = tokens * training_flops(config, recipe.data.context) / (1e9 * ceiling)
    if seconds < WORTH_COMPILING:
        return False, f"at the ceiling the run takes {seconds:.0f} s, too short for it to pay"
    return True, f"at the ceiling the run takes {seconds / 60:.0f} min"


def why_not_compile(device: torch.device) -> str | None:
    """Why `torch.compile` cannot be used, or None."""
    if device.type == "cpu" and shutil.which(os.environ.get("CXX", "g++")) is None:
        return "there is no C++ compiler"
    return None


def checkpoint_blocks(model: Decoder) -> None:
    """From here on a block keeps for its gradient nothing but what it reads; all else in it is computed again then.

    Memory for one more forward pass of the blocks in each step (Chen et al. 2016, section 3); results stay the same.
    """
    chance = any(isinstance(module, Adapter) and module.dropout for module in model.modules())
    for block in model.blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=chance)


def compile_blocks(model: Decoder, setting: Setting) -> None:
    """Compiles the blocks, which share one compilation, each in its place."""
    if setting.compiled:
        for block in model.blocks:
            block.compile(dynamic=False)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
