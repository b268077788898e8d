"""What this machine can do at most, in about a second: matrix products, and reading memory.

The two ceilings of the roofline (Williams et al. 2009, "Roofline: an insightful visual performance model"): reading a
prompt is bound by the first, writing tokens one at a time by the second.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid.operations.step import NativeLinear, why_not

PRECISIONS = ("float32", "bfloat16", "float16")
MATRIX = 1024  # 2 * 1024**3 operations a product: long beside the call, short beside a second
PROBE_BYTES = 256 * 2**20  # read by the memory probe; far more than the caches of most processors

# The trial request: 64 M weights as 16 projections, a prompt of 128 tokens and an answer of 128.
TRIAL_LAYERS, TRIAL_IN, TRIAL_OUT, TRIAL_TOKENS = 16, 1024, 4096, 128
ALONE = 0.8  # of the processor time that was there; measured 0.93 on a quiet machine, 0.25 to 0.5 beside other work


@dataclass(frozen=True)
class Ceilings:
    """The most that was measured: `matmul` in GFLOP/s by precision, `memory_read` in GB/s (1e9 bytes)."""

    matmul: dict[str, float]
    memory_read: float


def fastest(function: Callable[[], object], seconds: float) -> float:
    """The shortest time in seconds that one call took, among those that fit into about `seconds` (two at least)."""
    started = time.perf_counter()
    function()
    best, runs = math.inf, 0
    while runs < 2 or time.perf_counter() - started < seconds:
        before = time.perf_counter()
        function()
        best, runs = min(best, time.perf_counter() - before), runs + 1
    return best


@torch.inference_mode()
def measure_ceilings(precisions: Sequence[str] = PRECISIONS) -> Ceilings:
    """Measure both ceilings with the threads that torch has now. Takes about a second."""
    matmul, memory_read = dict.fromkeys(precisions, 0.0), 0.0
    for _ in range(2):  # in turn, so that a machine that slows down for a moment spoils no single figure
        for name in precisions:
            matmul[name] = max(matmul[name], matmul_rate(getattr(torch, name)))
        memory_read = max(memory_read, read_rate())
    return Ceilings(matmul, memory_read)


def matmul_rate(dtype: torch.dtype, seconds: float = 0.08) -> float:
    """GFLOP/s of a square matrix product as layers ask for it: 2 N^3 operations, a product and a sum each."""
    inputs, weight = (torch.full((MATRIX, MATRIX), 0.5, dtype=dtype) for _ in range(2))
    part = inputs[: MATRIX // 16]
    if 16 * fastest(lambda: F.linear(part, weight), 0) > seconds:  # this processor has no kernel for the type
        inputs = part
    took = fastest(lambda: F.linear(inputs, weight), seconds)
    return 2 * inputs.numel() * MATRIX / took / 1e9


def read_rate(seconds: float = 0.1) -> float:
    """GB/s of finding the largest of many numbers, which does nothing that takes longer than reading them."""
    count = max(PROBE_BYTES, 2 * last_level_cache()) // 4
    numbers = torch.zeros(count, dtype=torch.int32)
    return 4 * count / fastest(numbers.max, seconds) / 1e9


def last_level_cache() -> int:
    """Bytes of the largest cache of processor 0, or 0 where the system does not say."""
    sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    unit = {"K": 2**10, "M": 2**20, "G": 2**30}
    return max((int(text[:-1]) * unit[text[-1]] for text in (file.read_text().strip() for file in sizes)), default=0)


@dataclass(frozen=True)
class Trial:
    """Seconds that the trial took, by what was tried; whether the processor was ours alone meanwhile."""

    seconds: dict[str, float]
    alone: bool


@torch.inference_mode()
def time_requests(precisions: Sequence[str]) -> Trial:
    """Time the trial request in each precision, each the best of two, measured in turn.

    The weights pass through memory once for the prompt and once for each token of the answer, as in a real request.
    """

    def request(dtype: torch.dtype) -> Callable[[], float]:
        layers = [projection(dtype) for _ in range(TRIAL_LAYERS)]

        def seconds() -> float:
            prompt = torch.full((TRIAL_TOKENS, TRIAL_IN), 0.5, dtype=dtype)
            reading = fastest_pass(prompt, layers)
            return reading + TRIAL_TOKENS * fastest_pass(prompt[:1], layers)

        return seconds

    return in_turn({name: request(getattr(torch, name)) for name in precisions}, rounds=2)


def in_turn(timings: Mapping[str, Callable[[], float]], rounds: int) -> Trial:
    """The shortest time of each that `rounds` rounds gave. A timing computes, and returns the seconds that it took."""
    best = dict.fromkeys(timings, math.inf)
    started, used = time.perf_counter(), time.process_time()
    for _ in range(rounds):  # in turn, so that a machine that slows down for a moment spoils no single figure
        for name, timing in timings.items():
            best[name] = min(best[name], timing())
    # Each of torch's threads computes or spins all the while: processor time that is missing went to somebody else.
    share = (time.process_time() - used) / (time.perf_counter() - started) / torch.get_num_threads()
    return Trial(best, share > ALONE)


def projection(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """x (T, TRIAL_IN) -> x W^T, with W (TRIAL_OUT, TRIAL_IN) as a model that generates has it."""
    weight = torch.full((TRIAL_OUT, TRIAL_IN), 0.5, dtype=dtype)
    return NativeLinear(weight) if why_not(dtype) is None else lambda x: F.linear(x, weight)


def fastest_pass(tokens: Tensor, layers: Sequence[Callable[[Tensor], Tensor]]) -> float:
    """Seconds to take `tokens` (T, TRIAL_IN) through every projection, the best of two after one to warm up."""

    def through() -> None:
        for layer in layers:
            layer(tokens)

    return fastest(through, 0)
