"""What the system says about the machine: processor, cores, memory. Nothing is measured.

`root` is the top of the file system: a test gives the files of another machine.
"""

from __future__ import annotations

import contextlib
import math
import os
import platform
import subprocess
from pathlib import Path

from pellucid.native import cache_folder as cache_folder

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
