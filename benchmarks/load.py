"""Loading SmolLM2 beside transformers: from the packaged GGUF file, and from a folder in float32 and bfloat16.

    python benchmarks/load.py [--repeats 5]

Each load is a new process that has imported its library before the clock starts; the programs run in turn. Timed are
the load of model and tokenizer, and the load with a first forward of 16 tokens: mapped weights are read only then.
Memory is the peak of the process above what it was after the imports. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import pellucid
from pellucid.checkpoints.save import save
from pellucid.checkpoints.source import packaged_source
from pellucid.operations.ceilings import measure_ceilings
from pellucid.operations.hardware import describe

CHILD = """
import json, sys, time
import torch
path, program = sys.argv[1:]
if program == "pellucid":
    import pellucid
    pellucid.load
else:
    import os
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, logging
    import gguf, accelerate
    logging.set_verbosity_error()
    logging.disable_progress_bar()

def peak():  # of this program alone: getrusage would count what its parent was before it
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(status["VmHWM"].split()[0]) * 1024

before, started = peak(), time.perf_counter()
if program == "pellucid":
    model, tokenizer = pellucid.load(path)
    ids = tokenizer.encode("one two three")
else:
    folder, file = os.path.split(path) if path.endswith(".gguf") else (path, None)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    dtype = torch.float32 if file else "auto"
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=dtype)
    ids = tokenizer("one two three").input_ids
loaded = time.perf_counter() - started
with torch.inference_mode():
    out = model(torch.tensor([(ids * 16)[:16]]))
print(json.dumps({"load": loaded, "ready": time.perf_counter() - started, "peak": peak() - before}))
"""
PROGRAMS = ("pellucid", "transformers")


def measure(path: Path, program: str) -> dict[str, float]:
    command = [sys.executable, "-W", "ignore", "-c", CHILD, str(path), program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def compare(path: Path, repeats: int) -> dict[str, dict[str, float]]:
    """Medians of both programs, which take turns, after one run of each that fills the file cache."""
    runs = [{program: measure(path, program) for program in PROGRAMS} for _ in range(repeats + 1)][1:]
    return {
        program: {what: statistics.median(run[program][what] for run in runs) for what in ("load", "ready", "peak")}
        for program in PROGRAMS
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    print(describe())
    read = measure_ceilings(["float32"]).memory_read
    print(f"memory read {read:.1f} GB/s")
    results = {}
    with tempfile.TemporaryDirectory() as name:
        places = {"GGUF Q4_1": packaged_source("smollm2").path}
        for dtype in ("float32", "bfloat16"):
            places[f"folder {dtype}"] = Path(name) / dtype
            save(*pellucid.load("smollm2", dtype=dtype), places[f"folder {dtype}"])
        for what, path in places.items():
            results[what] = compare(path, repeats)
            for program, seen in results[what].items():
                times = f"load {seen['load']:5.2f} s  ready {seen['ready']:5.2f} s"
                print(f"{what:16} {program:13} {times}  peak {seen['peak'] / 2**20:5.0f} MiB")
            ours, theirs = (results[what][program] for program in PROGRAMS)
            times = f"load {theirs['load'] / ours['load']:5.2f}    ready {theirs['ready'] / ours['ready']:5.2f}"
            print(f"{what:16} {'ratio':13} {times}")
    print(json.dumps({"benchmark": "load", "repeats": repeats, "memory_read_gb_per_s": read, "medians": results}))


if __name__ == "__main__":
    main()
