"""The engine beside llama.cpp and transformers, from the same weights in the same precision, at batch 1 and batch 8.

    make peers && python benchmarks/engine.py [--precision bfloat16] [--prompt 512] [--new 128] [--repeats 5]
        [--shape smollm2|1b] [--transformers]

shape: SmolLM2-135M, or random weights in the shape of Llama 3.2 1B. precision: of the weights; blocks of integers are
GGUF's, and both read the same file. llama.cpp is `llama-batched-bench`, built for this processor, with as many threads;
it draws no token, pellucid takes the most likely one, as `generate` of transformers does (bfloat16 and float32 alone).
All take turns, and ratios are medians of the rounds. Printed beside them: how near decoding is to what memory gives,
measured in the same minute. The last line is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import pellucid
from pellucid.checkpoints.gguf_save import save_gguf
from pellucid.checkpoints.save import save
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


def with_transformers(folder: Path, precision: str, new: int) -> Callable[[list[int], int], Speeds]:
    """transformers' `generate` over the same weights."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, precision)).eval()

    @torch.inference_mode()
    def speeds(prompt: list[int], batch: int) -> Speeds:
        tokens = torch.tensor([prompt] * batch)

        def seconds(count: int) -> float:
            started = time.perf_counter()
            mask = torch.ones_like(tokens)
            model.generate(tokens, attention_mask=mask, do_sample=False, max_new_tokens=count, min_new_tokens=count)
            return time.perf_counter() - started

        first, whole = seconds(1), seconds(new)
        return {"prompt": batch * len(prompt) / first, "answer": batch * (new - 1) / (whole - first)}

    return speeds


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
    parser.add_argument("--transformers", action="store_true", help="beside llama.cpp; it takes long")
    for name, default in {"prompt": 512, "new": 128, "repeats": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    if not BENCH.exists():
        print("llama.cpp is not there, and nothing to compare with: make peers")
        return
    use_best_threads()
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        file, saved = Path(folder) / "model.gguf", Path(folder) / "model"
        model, tokenizer = make_model(asked.shape, asked.precision)
        save_gguf(model, tokenizer, file, kind=TYPES[asked.precision])
        if asked.transformers and asked.precision in ("float32", "bfloat16"):
            save(model, tokenizer, saved)
        if asked.precision not in ("float32", "bfloat16"):
            model, tokenizer = pellucid.load(file, dtype="bfloat16", quantize="stored")
        engine = Engine(model, tokenizer, num_blocks=1024)
        text = tokenizer.encode("Reading a prompt is one large product, and writing is many small ones. ") * 100
        prompt = text[: asked.prompt]
        ways: dict[str, Callable[[list[int], int], Speeds]] = {
            "pellucid": lambda prompt, batch: ours(engine, prompt, asked.new, batch),
            "llama.cpp": lambda prompt, batch: theirs(file, len(prompt), asked.new, batch, threads),
        }
        if saved.exists():
            ways["transformers"] = with_transformers(saved, asked.precision, asked.new)
        print(describe(measure_ceilings()))
        size = weight_bytes(model)
        how = engine.runner.why_not or "native"
        print(f"{asked.shape}, {asked.precision}, {size / 1e6:.0f} MB, {threads} threads, steps: {how}")
        results: list[dict[str, Any]] = []
        for batch in BATCHES:
            ours(engine, prompt, 4, batch)
            rounds = [{name: way(prompt, batch) for name, way in ways.items()} for _ in range(asked.repeats)]
            results.append(show(rounds, batch, size, measure_ceilings().memory_read))
    print(json.dumps({"benchmark": "engine", "shape": asked.shape, "precision": asked.precision, "results": results}))


def weight_bytes(model: Decoder) -> int:
    return sum(one.numel() * one.element_size() for one in (*model.parameters(), *model.buffers()))


def show(rounds: list[dict[str, Speeds]], batch: int, size: int, memory: float) -> dict[str, Any]:
    """Prints medians, and ratios to each of the others. size: bytes of the weights; memory: GB/s."""
    found: dict[str, Any] = {"batch": batch}
    for what in ("prompt", "answer"):
        own = statistics.median(one["pellucid"][what] for one in rounds)
        line, found[what] = f"batch {batch} {what:7} pellucid {own:7.0f} tokens/s", {"pellucid": own}
        for name in rounds[0]:
            if name != "pellucid":
                other = statistics.median(one[name][what] for one in rounds)
                ratio = statistics.median(one["pellucid"][what] / one[name][what] for one in rounds)
                line += f", {name} {other:7.0f}: {ratio:.2f}"
                found[what] |= {name: other, f"over {name}": ratio}
        print(line, flush=True)
    share = size * found["answer"]["pellucid"] / batch / (memory * 1e9)
    print(f"batch {batch} reads the weights at {share:.0%} of the {memory:.0f} GB/s that memory gave just now")
    return found | {"share_of_memory": share}


if __name__ == "__main__":
    main()
