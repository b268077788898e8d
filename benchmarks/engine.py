"""The engine beside llama.cpp, from the same weights in the same precision, at batch 1 and batch 8.

    make peers && python benchmarks/engine.py [--precision bfloat16] [--prompt 512] [--new 128] [--repeats 5]
        [--shape smollm2|1b]

shape: SmolLM2-135M, or random weights in the shape of Llama 3.2 1B. precision: of the weights; blocks of integers are
GGUF's, and both read the same file. llama.cpp is `llama-batched-bench`, built for this processor, with as many threads;
it draws no token, pellucid takes the most likely one. The two take turns, and ratios are medians of the rounds. Printed
beside them: how near decoding is to what memory gives, measured in the same minute. The last line is JSON.
`generation.py` has transformers beside it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import pellucid
from pellucid.checkpoints.gguf_save import save_gguf
from pellucid.inference.engine import Engine
from pellucid.inference.params import SamplingParams
from pellucid.models.decoder import Decoder
from pellucid.operations.ceilings import measure_ceilings
from pellucid.operations.hardware import describe, use_best_threads
from pellucid.tokenizer.tokenizer import Tokenizer

BENCH = Path(__file__).parent.parent / ".cache/peers/llama.cpp/bin/llama-batched-bench"
BATCHES = (1, 8)
UNLIKE = itertools.count(1000)  # tokens
TYPES = {"bfloat16": "bf16", "float32": "f32", "Q8_0": "q8_0", "Q4_0": "q4_0", "Q4_1": "q4_1"}  # of the GGUF file
LLAMA_1B = {"hidden_size": 2048, "num_layers": 16, "num_heads": 32, "num_kv_heads": 8, "head_dim": 64,
            "intermediate_size": 8192}  # fmt: skip
Speeds = dict[str, float]


def ours(engine: Engine, prompt: list[int], new: int, batch: int) -> Speeds:
    """Tokens/s of the prompts, and of the answers behind their first token."""
    params = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True)
    started = time.perf_counter()
    for _ in range(batch):
        engine.add([next(UNLIKE), *prompt[1:]], params)  # no two begin alike, so that nothing is in the cache
    first: dict[int, float] = {}
    while engine.busy:
        for event in engine.step():
            first.setdefault(event.id, time.perf_counter() - started)
    read, whole = max(first.values()), time.perf_counter() - started
    return {"prompt": batch * len(prompt) / read, "answer": batch * (new - 1) / (whole - read)}


def theirs(model: Path, prompt: int, new: int, batch: int, threads: int) -> Speeds:
    room = str(batch * (prompt + new) + 64)
    command = [BENCH, "-m", model, "-c", room, "-b", "2048", "-ub", "512", "-npp", prompt, "-ntg", new, "-npl", batch]
    command += ["-t", threads, "-tb", threads, "--output-format", "jsonl"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    [line] = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {"prompt": line["speed_pp"], "answer": line["speed_tg"]}


def make_model(shape: str, precision: str) -> tuple[Decoder, Tokenizer]:
    """The model whose weights all will read, in numbers: those of blocks are rounded when the file is written."""
    dtype = precision if precision in ("float32", "bfloat16") else "bfloat16"
    model, tokenizer = pellucid.load("smollm2", dtype=dtype)
    if shape == "1b":
        with torch.device("meta"):
            model = Decoder(model.config.model_copy(update=LLAMA_1B))
        model = model.to(getattr(torch, dtype)).to_empty(device="cpu").eval()
        for parameter in model.parameters():
            parameter.data = torch.randn(parameter.shape, dtype=parameter.dtype) * 0.02
    return model, tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=TYPES, default="bfloat16")
    parser.add_argument("--shape", choices=("smollm2", "1b"), default="smollm2")
    for name, default in {"prompt": 512, "new": 128, "repeats": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    if not BENCH.exists():
        print("llama.cpp is not there, and nothing to compare with: make peers")
        return
    use_best_threads()
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.gguf"
        model, tokenizer = make_model(asked.shape, asked.precision)
        save_gguf(model, tokenizer, file, kind=TYPES[asked.precision])
        if asked.precision not in ("float32", "bfloat16"):
            model, tokenizer = pellucid.load(file, dtype="bfloat16", quantize="stored")
        engine = Engine(model, tokenizer, num_blocks=1024)
        text = tokenizer.encode("Reading a prompt is one large product, and writing is many small ones. ") * 100
        prompt = text[: asked.prompt]
        print(describe(measure_ceilings()))
        size = weight_bytes(model)
        how = engine.runner.why_not or "native"
        print(f"{asked.shape}, {asked.precision}, {size / 1e6:.0f} MB, {threads} threads, steps: {how}")
        results: list[dict[str, Any]] = []
        for batch in BATCHES:
            ours(engine, prompt, 4, batch)
            pairs = [
                (ours(engine, prompt, asked.new, batch), theirs(file, asked.prompt, asked.new, batch, threads))
                for _ in range(asked.repeats)
            ]
            results.append(show(pairs, batch, size, measure_ceilings().memory_read))
    print(json.dumps({"benchmark": "engine", "shape": asked.shape, "precision": asked.precision, "results": results}))


def weight_bytes(model: Decoder) -> int:
    return sum(one.numel() * one.element_size() for one in (*model.parameters(), *model.buffers()))


def show(pairs: list[tuple[Speeds, Speeds]], batch: int, size: int, memory: float) -> dict[str, Any]:
    """Prints medians and ratios. size: bytes of the weights; memory: GB/s."""
    found: dict[str, Any] = {"batch": batch}
    for what in ("prompt", "answer"):
        mine, other = (statistics.median(pair[side][what] for pair in pairs) for side in (0, 1))
        ratio = statistics.median(one[what] / two[what] for one, two in pairs)
        print(f"batch {batch} {what:7} pellucid {mine:7.0f} tokens/s, llama.cpp {other:7.0f}: {ratio:.2f}", flush=True)
        found[what] = {"pellucid": mine, "llama.cpp": other, "ratio": ratio}
    share = size * found["answer"]["pellucid"] / batch / (memory * 1e9)
    print(f"batch {batch} reads the weights at {share:.0%} of the {memory:.0f} GB/s that memory gave just now")
    return found | {"share_of_memory": share}


if __name__ == "__main__":
    main()
