"""The machine that we run on: what it has, and which precision is the faster one on it.

Precision is chosen by measurement, never by name: with AVX2 alone a bfloat16 product takes four times as long as a
float32 one, with AVX512-BF16 less than half. The choice is remembered by processor, torch version and thread count.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from pellucid.errors import InputError, did_you_mean
from pellucid.operations.ceilings import PRECISIONS, Ceilings, measure_ceilings, time_requests

CANDIDATES = ("float32", "bfloat16")  # float16 overflows in models that were trained in bfloat16
MARGIN = 1.1  # float32 is the more exact one: another precision has to be this much faster
OVERRIDE = "PELLUCID_PRECISION"

# What /proc/cpuinfo calls it, and what its maker calls it; only what matters to matrix products.
INSTRUCTIONS = {
    "avx2": "AVX2",
    "fma": "FMA",
    "f16c": "F16C",
    "avx512f": "AVX512F",
    "avx512_bf16": "AVX512-BF16",
    "avx512_fp16": "AVX512-FP16",
    "avx_vnni": "AVX-VNNI",
    "avx512_vnni": "AVX512-VNNI",
    "amx_tile": "AMX",
    "amx_bf16": "AMX-BF16",
    "amx_int8": "AMX-INT8",
    "asimd": "NEON",
    "asimddp": "NEON-DOT",
    "bf16": "ARM-BF16",
    "i8mm": "ARM-I8MM",
    "sve": "SVE",
}


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
    """The precision to compute in. `reason` is a sentence; `seconds` are those of the trial request, if one was run."""

    name: str
    reason: str
    seconds: dict[str, float]

    @property
    def dtype(self) -> torch.dtype:
        return getattr(torch, self.name)


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


def read_processor(root: Path = Path("/")) -> tuple[str, tuple[str, ...]]:
    """The processor's name and those of its instruction sets that `INSTRUCTIONS` lists."""
    cpuinfo = root / "proc/cpuinfo"
    if not cpuinfo.exists():
        return read_processor_without_proc()
    fields: dict[str, str] = {}
    for line in cpuinfo.read_text(errors="replace").splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    name = fields.get("model name") or platform.processor() or platform.machine()
    return name, tuple(ours for theirs, ours in INSTRUCTIONS.items() if theirs in flags)


def read_processor_without_proc() -> tuple[str, tuple[str, ...]]:
    """The same on macOS and Windows, which say less."""
    name = platform.processor() or platform.machine()
    if platform.system() == "Darwin":
        with contextlib.suppress(OSError):
            asked = subprocess.run(
                ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False
            )
            name = asked.stdout.strip() or name
    neon = ("NEON",) if platform.machine().lower() in ("arm64", "aarch64") else ()
    return name, neon


def usable_cores(root: Path = Path("/")) -> int:
    """Cores that this process may use: its affinity, and a container's quota (cgroup v2) rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # no cgroup, or no quota in it ("max")
        quota, period = (root / "sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, math.ceil(int(quota) / int(period)))
    return max(1, cores)


def read_memory(root: Path = Path("/")) -> tuple[int, int]:
    """Bytes of memory: in all, and available; no more than a container (cgroup v2) leaves. 0 where nobody says."""
    total = available = 0
    with contextlib.suppress(OSError):
        lines = (root / "proc/meminfo").read_text().splitlines()
        sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith("kB")}
        total, available = sizes.get("MemTotal", 0), sizes.get("MemAvailable", 0)
    if not total and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        total = available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError):
        limit = int((root / "sys/fs/cgroup/memory.max").read_text())
        used = int((root / "sys/fs/cgroup/memory.current").read_text())
        total, available = min(total, limit), min(available, max(0, limit - used))
    return total, available


def best_precision(override: str | None = None, *, remeasure: bool = False) -> Precision:
    """The precision in which this machine answers fastest, and why.

    `override`, else the environment's `PELLUCID_PRECISION`, decides if it is set and not "auto". Otherwise a trial
    request is timed in each candidate (about a second), once for each processor, torch version and thread count.

    Raises:
        InputError: for a name that is none of `PRECISIONS`.
    """
    for name, source in ((override, "asked for"), (os.environ.get(OVERRIDE), f"set by {OVERRIDE}")):
        if name and name != "auto":
            if name not in PRECISIONS:
                allowed = ", ".join(("auto", *PRECISIONS))
                raise InputError(f"precision {name!r} ({source}) is none of {allowed}{did_you_mean(name, PRECISIONS)}")
            return Precision(name, f"{name}, {source}", {})
    key = f"{read_processor()[0]} | torch {torch.__version__} | {torch.get_num_threads()} threads"
    seconds = None if remeasure else recall(key)
    how = "remembered" if seconds else "measured"
    if seconds is None:
        seconds = time_requests(CANDIDATES)
        if not remember(key, seconds):
            how = f"measured; {cache_folder()} cannot be written, so it will be measured again"
    name = choose(seconds)
    (other,) = set(CANDIDATES) - {name}
    times = f"{seconds[name]:.2f} s for a trial request, {other} {seconds[other]:.2f} s"
    return Precision(name, f"{name}: {times} ({how})", seconds)


def choose(seconds: dict[str, float]) -> str:
    """The fastest precision; float32 unless it is beaten by more than `MARGIN`."""
    fastest = min(seconds, key=lambda name: seconds[name])
    return fastest if seconds["float32"] > MARGIN * seconds[fastest] else "float32"


def cache_folder() -> Path:
    """Where what was measured or compiled is kept: `PELLUCID_CACHE`, or `pellucid` in the user's cache folder."""
    chosen = os.environ.get("PELLUCID_CACHE")
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pellucid"


def recall(key: str) -> dict[str, float] | None:
    """The remembered seconds of each candidate, or None: not there, or not readable as what `remember` writes."""
    try:
        seconds = json.loads((cache_folder() / "precision.json").read_text())[key]
        times = {name: float(seconds[name]) for name in CANDIDATES}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return times if all(0 < value < math.inf for value in times.values()) else None


def remember(key: str, seconds: dict[str, float]) -> bool:
    """Keep the measurement; whether that worked. The file is replaced as a whole, so no reader sees half of it."""
    file = cache_folder() / "precision.json"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            known = json.loads(file.read_text())
        except (OSError, ValueError):
            known = {}
        if not isinstance(known, dict):
            known = {}
        with tempfile.NamedTemporaryFile("w", dir=file.parent, suffix=".tmp", delete=False) as draft:
            json.dump({**known, key: seconds}, draft, indent=1)
        Path(draft.name).replace(file)
    except OSError:
        return False
    return True


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
