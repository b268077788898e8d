"""The machine that we run on, and how we run on it: which precision and how many threads are the fastest.

Both are chosen by measurement, never by name: with AVX2 alone a bfloat16 product takes four times as long as a float32
one, with AVX512-BF16 less than half. A choice is remembered by processor, torch version and thread count.
"""

from __future__ import annotations

import json
import math
import os
import platform
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from pellucid.errors import InputError, did_you_mean
from pellucid.operations.ceilings import PRECISIONS, Ceilings, Trial, measure_ceilings, time_requests
from pellucid.operations.machine import cache_folder, read_memory, read_processor, usable_cores
from pellucid.operations.step import describe as describe_linear

CANDIDATES = ("float32", "bfloat16")  # float16 overflows in models that were trained in bfloat16
MARGIN = 1.1  # what is there by itself (float32, torch's own thread count) stays unless another is this much faster
BUSY_AGE = 600  # seconds for which a trial beside other work is believed

Seconds = dict[str, float]  # of the trial, by what was tried


@dataclass(frozen=True)
class Features:
    """What the machine has. Memory in bytes, within the limits of a container where there are any."""

    processor: str
    architecture: str
    instructions: tuple[str, ...]
    cores: int  # that this process may use
    threads: int  # that torch uses
    memory_total: int
    memory_available: int
    torch_version: str
    torch_capability: str  # the vector instructions that torch's own kernels chose: AVX2, AVX512, DEFAULT ...
    gpus: tuple[str, ...]


@dataclass(frozen=True)
class Precision:
    """The precision to compute in. `reason` is a sentence; `seconds` are those of the trial, if one was run."""

    name: str
    reason: str
    seconds: Seconds

    @property
    def dtype(self) -> torch.dtype:
        return getattr(torch, self.name)


@dataclass(frozen=True)
class Threads:
    """How many threads to compute with. `reason` is a sentence; `seconds` are those of the trial, if one was run."""

    count: int
    reason: str
    seconds: Seconds


def features() -> Features:
    """What this machine has, in milliseconds: nothing is measured."""
    processor, instructions = read_processor()
    total, available = read_memory()
    gpus = tuple(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    return Features(
        processor=processor,
        architecture=platform.machine(),
        instructions=instructions,
        cores=usable_cores(),
        threads=torch.get_num_threads(),
        memory_total=total,
        memory_available=available,
        torch_version=torch.__version__,
        torch_capability=torch.backends.cpu.get_cpu_capability(),
        gpus=gpus,
    )


def best_precision(override: str | None = None, *, remeasure: bool = False) -> Precision:
    """The precision in which this machine answers fastest, and why.

    `override`, else the environment's `PELLUCID_PRECISION`, decides if it is set and not "auto". Otherwise a trial
    request is timed in each candidate (about a second), once for each processor, torch version and thread count.

    Raises:
        InputError: for a name that is none of `PRECISIONS`.
    """
    if asked := asked_precision(override, PRECISIONS):
        return asked
    what = f"precision with {torch.get_num_threads()} threads, linear {describe_linear(torch.float32)}"
    trial, how = once(what, CANDIDATES, lambda: time_requests(CANDIDATES), remeasure)
    seconds, name = trial.seconds, fastest(trial.seconds, unless="float32")
    (other,) = set(CANDIDATES) - {name}
    times = f"{seconds[name]:.2f} s for a trial request, {other} {seconds[other]:.2f} s"
    return Precision(name, f"{name}: {times} ({how})", seconds)


def asked_precision(override: str | None, allowed: Sequence[str]) -> Precision | None:
    """The precision that `override`, else `PELLUCID_PRECISION`, names; None where neither decides.

    Raises:
        InputError: for a name that is none of `allowed`.
    """
    for name, source in ((override, "asked for"), (os.environ.get("PELLUCID_PRECISION"), "set by PELLUCID_PRECISION")):
        if name and name != "auto":
            if name not in allowed:
                there_are = ", ".join(("auto", *allowed))
                raise InputError(f"precision {name!r} ({source}) is none of {there_are}{did_you_mean(name, allowed)}")
            return Precision(name, f"{name}, {source}", {})
    return None


def best_threads(*, remeasure: bool = False) -> Threads:
    """How many threads answer fastest here, and why: torch's own count, all usable cores, or half of them.

    `PELLUCID_THREADS` decides if it is set; `OMP_NUM_THREADS` is heard by torch itself, and kept. Otherwise the trial
    request is timed with each (about a second), once for each processor and torch version. Nothing is set: see
    `use_best_threads`.

    Raises:
        InputError: when `PELLUCID_THREADS` is no positive whole number.
    """
    if asked := os.environ.get("PELLUCID_THREADS"):
        if not asked.isdecimal() or int(asked) == 0:
            raise InputError(f"PELLUCID_THREADS is {asked!r}; it has to be a positive whole number")
        return Threads(int(asked), f"{asked}, set by PELLUCID_THREADS", {})
    own, cores = torch.get_num_threads(), usable_cores()
    if "OMP_NUM_THREADS" in os.environ:
        return Threads(own, f"{own}, set by OMP_NUM_THREADS", {})
    candidates = sorted({own, cores, max(1, cores // 2)})
    if len(candidates) == 1:
        return Threads(own, f"{own}: there is one core", {})
    names = [str(count) for count in candidates]
    trial, how = once(f"threads, torch's own {own}", names, lambda: time_threads(candidates), remeasure)
    seconds = trial.seconds
    name = fastest(seconds, unless=str(own)) if trial.alone else str(own)  # others' work passes, and slows many threads
    others = ", ".join(f"{seconds[other]:.2f} s with {other}" for other in names if other != name)
    return Threads(int(name), f"{name}: {seconds[name]:.2f} s for a trial request, {others} ({how})", seconds)


def use_best_threads() -> Threads:
    """Let torch use `best_threads()` from now on in this process; which, and why."""
    threads = best_threads()
    torch.set_num_threads(threads.count)
    return threads


def time_threads(counts: Collection[int]) -> Trial:
    """Time the trial request in float32 with each number of threads; torch's number is as before afterwards."""
    before = torch.get_num_threads()
    trials: dict[str, Trial] = {}
    try:
        for count in counts:
            torch.set_num_threads(count)
            trials[str(count)] = time_requests(("float32",))
    finally:
        torch.set_num_threads(before)
    seconds = {count: trial.seconds["float32"] for count, trial in trials.items()}
    return Trial(seconds, all(trial.alone for trial in trials.values()))


def fastest(seconds: Seconds, *, unless: str) -> str:
    """The name with the shortest time; `unless` stays if it takes no more than `MARGIN` times as long."""
    best = min(seconds, key=lambda name: seconds[name])
    return best if seconds[unless] > MARGIN * seconds[best] else unless


def once(what: str, names: Collection[str], measure: Callable[[], Trial], remeasure: bool) -> tuple[Trial, str]:
    """The trial of each name, remembered or made now, and in words which of the two.

    What was measured beside other work is used for ten minutes only: a busy minute shall not decide for good.
    """
    key = f"{what}, {read_processor()[0]}, {usable_cores()} cores, torch {torch.__version__}"
    if not remeasure and (known := recall(key, names)):
        return known, "remembered" if known.alone else "remembered for ten minutes, from beside other work"
    trial = measure()
    if not remember(key, trial):
        return trial, f"measured, not kept: {cache_folder()} cannot be written"
    return trial, "measured" if trial.alone else "measured beside other work, kept for ten minutes"


def recall(key: str, names: Collection[str]) -> Trial | None:
    """What `remember` kept, or None: it is not there, too old, or not readable as a trial of these names."""
    try:
        kept = json.loads(memory_file().read_text())[key]
        seconds = {name: float(kept["seconds"][name]) for name in names}
        alone, age = kept["alone"] is True, time.time() - float(kept["at"])
    except (OSError, ValueError, LookupError, TypeError):
        return None
    if not all(0 < value < math.inf for value in seconds.values()) or not (alone or 0 <= age < BUSY_AGE):
        return None
    return Trial(seconds, alone)


def remember(key: str, trial: Trial) -> bool:
    """Keep the trial; whether that worked. The file is replaced as a whole, so no reader sees half of it."""
    file = memory_file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        known = {**kept_by(file), key: {**asdict(trial), "at": time.time()}}
        with tempfile.NamedTemporaryFile("w", dir=file.parent, suffix=".tmp", delete=False) as draft:
            json.dump(known, draft, indent=1)
        Path(draft.name).replace(file)
    except OSError:
        return False
    return True


def kept_by(file: Path) -> dict[str, object]:
    """What is in the memory file; nothing if it is missing or damaged: it will be written anew."""
    try:
        known = json.loads(file.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def memory_file() -> Path:
    return cache_folder() / "measured.json"


def describe(ceilings: Ceilings | None = None) -> str:
    """Three lines that head a benchmark: machine, torch, and the ceilings (measured now unless they are given)."""
    machine = features()
    ceilings = ceilings or measure_ceilings()
    products = ", ".join(f"{name} {rate:.0f}" for name, rate in ceilings.matmul.items())
    return "\n".join(
        (
            f"machine   {machine.processor}, {machine.cores} cores, {' '.join(machine.instructions)}",
            f"torch     {machine.torch_version}, {machine.threads} threads, {machine.torch_capability} kernels",
            f"ceilings  matmul {products} GFLOP/s; memory read {ceilings.memory_read:.0f} GB/s",
        )
    )
