"""Where the time goes between the start of a command and its first token (promise I4)."""

from __future__ import annotations

import os
import time
from pathlib import Path


class Timeline:
    """The parts of a start-up, one after the other, in seconds; together they are the whole.

    age: seconds for which the process has run already.
    """

    def __init__(self, age: float = 0.0):
        self.parts: dict[str, float] = {}
        self._latest = time.perf_counter() - age

    def end(self, part: str) -> None:
        """What has been done since the last part ended was `part`. Each ends once: later calls change nothing."""
        if part not in self.parts:
            now = time.perf_counter()
            self.parts[part], self._latest = now - self._latest, now

    @property
    def seconds(self) -> float:
        return sum(self.parts.values())

    def line(self) -> str:
        """All parts, as `ready after 1.50 s: imports 1.00, load 0.50`."""
        reached = "first token" if "first token" in self.parts else "ready"
        parts = ", ".join(f"{name} {seconds:.2f}" for name, seconds in self.parts.items())
        return f"{reached} after {self.seconds:.2f} s: {parts}"


def process_age() -> float:
    """Seconds since this process was started, Python's own start included; 0 where the system does not tell."""
    try:
        # After the name in brackets, which may hold spaces: field 22 of proc(5), in ticks since the machine's start.
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError):
        return 0.0
