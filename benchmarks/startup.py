"""How long until something is there: `import pellucid`, `pellucid --help`, beside Python itself and a peer.

    python benchmarks/startup.py [--repeats N]

Each is a new process, in turn; the median of N, after one run that fills the file cache. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from pellucid.operations.hardware import describe

PROGRAM = str(Path(sys.executable).with_name("pellucid"))
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import pellucid": [sys.executable, "-c", "import pellucid"],
    "pellucid --help": [PROGRAM, "--help"],
    "pellucid chat --help": [PROGRAM, "chat", "--help"],
    "import transformers": [sys.executable, "-c", "import transformers"],
}


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=11)
    repeats = parser.parse_args().repeats
    print(describe())
    for command in COMMANDS.values():
        seconds(command)
    runs = [{name: seconds(command) for name, command in COMMANDS.items()} for _ in range(repeats)]
    medians = {name: statistics.median(run[name] for run in runs) for name in COMMANDS}
    for name, median in medians.items():
        print(f"{name:22} {1000 * median:6.0f} ms")
    print(json.dumps({"benchmark": "startup", "repeats": repeats, "median_seconds": medians}))


if __name__ == "__main__":
    main()
