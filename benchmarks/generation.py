"""Generation beside transformers' `generate`, from the same weights: SmolLM2, greedy, batch 1 and 8.

    python benchmarks/generation.py [--batches 1 8] [--prompt 128] [--new 128] [--repeats 5] [--device cpu|cuda]

On a GPU one engine serves all runs, since its steps are compiled and recorded in the trial; it forgets every prompt.
Each program runs in the precision that is the faster one for it here, found in a short trial at the same batch size.
Then they run in turn, so that a machine whose speed changes meets both alike. The last line is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

import pellucid
from pellucid.checkpoints.source import packaged_source
from pellucid.inference.engine import Engine
from pellucid.inference.output import answer_all
from pellucid.inference.params import SamplingParams
from pellucid.operations.ceilings import Ceilings, measure_ceilings
from pellucid.operations.hardware import describe

PRECISIONS = ("float32", "bfloat16")
TRIAL_TOKENS = 24
TEXT = """A model of language gives every next word a probability, given the words before it. Reading a prompt is one
large product of matrices, and the processor's arithmetic is what bounds it; writing an answer is a product of a matrix
and a vector for every word, and there the memory that holds the matrix is what bounds it. So a long question may cost
less than a short answer, and eight answers at once cost little more than one. """

Run = Callable[[list[list[int]], int], tuple[float, list[list[int]]]]  # (prompts, new tokens) -> seconds, new tokens


def ours(precision: str, device: str) -> tuple[Run, Any]:
    model, tokenizer = pellucid.load("smollm2", dtype=precision, device=device)
    weight_bytes = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    kept = Engine(model, tokenizer, num_blocks=512) if device == "cuda" else None
    how = Engine(model, tokenizer, num_blocks=4).runner.how
    print(f"pellucid, {precision}, steps: {how}", file=sys.stderr)

    def run(prompts: list[list[int]], new: int) -> tuple[float, list[list[int]]]:
        params = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True)
        engine = kept or Engine(model, tokenizer, max_sequences=len(prompts))  # a new one, which knows no prompt yet
        engine.scheduler.blocks.forget()
        started = time.perf_counter()
        completions = answer_all(engine, prompts, params)
        return time.perf_counter() - started, [one.token_ids for one in completions]

    return run, (model, tokenizer, weight_bytes)


def theirs(precision: str, device: str) -> tuple[Run, Any]:
    from transformers import AutoModelForCausalLM, logging

    logging.set_verbosity_error()
    path = packaged_source("smollm2").path
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # its progress bars
        model = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=getattr(torch, precision)
        ).to(device).eval()  # fmt: skip

    def run(prompts: list[list[int]], new: int) -> tuple[float, list[list[int]]]:
        ids = torch.tensor(prompts, device=device)
        started = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new,
                min_new_tokens=new,
                do_sample=False,
                pad_token_id=0,
            )
        tokens = out[:, ids.shape[1] :].tolist()
        return time.perf_counter() - started, tokens

    return run, model


PROGRAMS = {"pellucid": ours, "transformers": theirs}


def fastest_precision(runs: dict[tuple[str, str], Run], program: str, prompts: list[list[int]]) -> tuple[str, dict]:
    """The precision in which `program` answers soonest, and the seconds of each."""
    seconds: dict[str, float] = {}
    for precision in PRECISIONS:
        runs[program, precision](prompts, 2)  # what is done at the first call only
        seconds[precision] = min(runs[program, precision](prompts, TRIAL_TOKENS)[0] for _ in range(2))
    return min(seconds, key=lambda name: seconds[name]), seconds


def compare(
    runs: dict[tuple[str, str], Run], prompts: list[list[int]], new: int, repeats: int
) -> dict[str, dict[str, Any]]:
    """Both programs in turn: seconds of a whole answer, and of its first token."""
    chosen = {program: fastest_precision(runs, program, prompts) for program in PROGRAMS}
    results: dict[str, dict[str, Any]] = {
        program: {"precision": precision, "trial_seconds": trial, "seconds": [], "first_token_seconds": []}
        for program, (precision, trial) in chosen.items()
    }
    for repeat in range(repeats):
        print(f"batch {len(prompts)}, repeat {repeat + 1} of {repeats}", file=sys.stderr)
        for program, result in results.items():
            run = runs[program, result["precision"]]
            result["first_token_seconds"].append(run(prompts, 1)[0])
            seconds, result["tokens"] = run(prompts, new)
            result["seconds"].append(seconds)
    return results


def summary(result: dict[str, Any], batch: int, new: int) -> dict[str, Any]:
    """Medians of what `compare` measured."""
    whole, first = (statistics.median(result[name]) for name in ("seconds", "first_token_seconds"))
    return {
        "precision": result["precision"],
        "seconds": whole,
        "first_token_seconds": first,
        "tokens_per_second": batch * new / whole,
        "steps_per_second": (new - 1) / (whole - first),
    }


def share_of_memory(
    model: Any, weight_bytes: int, batch: int, length: int, steps_per_second: float, ceilings: Ceilings
) -> float:
    """How near decoding is to the limit that memory sets: bytes a step times steps a second, over the measured rate.

    A step reads every weight once, and of every row the keys and values of the `length` tokens that it holds.
    """
    cache = model.new_cache(batch, length).num_bytes()
    return (weight_bytes + cache) * steps_per_second / (ceilings.memory_read * 1e9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--prompt", type=int, default=128, help="tokens of each prompt")
    parser.add_argument("--new", type=int, default=128, help="tokens of each answer")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()

    ceilings = measure_ceilings()
    print(describe(ceilings))
    runs: dict[tuple[str, str], Run] = {}
    models: dict[str, Any] = {}
    for precision in PRECISIONS:
        runs["pellucid", precision], (model, tokenizer, weight_bytes) = ours(precision, options.device)
        models[precision] = (model, weight_bytes)
        runs["transformers", precision], _ = theirs(precision, options.device)
    gc.collect()
    ids = tokenizer.encode(TEXT * (1 + (options.prompt + max(options.batches)) // 64))
    report: dict[str, Any] = {
        "benchmark": "generation",
        "device": options.device,
        "prompt": options.prompt,
        "new": options.new,
        "batches": {},
    }
    for batch in options.batches:
        prompts = [ids[row : row + options.prompt] for row in range(batch)]
        results = compare(runs, prompts, options.new, options.repeats)
        ceilings = measure_ceilings()
        report["batches"][batch] = show(results, batch, options, models, ceilings)
    print(json.dumps(report))


def show(
    results: dict[str, dict[str, Any]], batch: int, options: argparse.Namespace, models: Any, ceilings: Ceilings
) -> dict[str, Any]:
    """Print the figures of one batch size; return them."""
    print(
        f"\nbatch {batch}: {options.prompt} tokens of prompt, {options.new} of answer, {options.repeats} runs in turn"
    )
    figures = {program: summary(result, batch, options.new) for program, result in results.items()}
    for program, one in figures.items():
        print(
            f"  {program:13} {one['precision']:9} {one['tokens_per_second']:7.1f} tokens/s   "
            f"first token {1000 * one['first_token_seconds']:6.0f} ms   step {1000 / one['steps_per_second']:6.1f} ms"
        )
    a, b = (results[program] for program in PROGRAMS)
    pairs = zip(a["seconds"], b["seconds"], strict=True)
    first_pairs = zip(a["first_token_seconds"], b["first_token_seconds"], strict=True)
    ratio = statistics.median(theirs / ours for ours, theirs in pairs)
    first = statistics.median(theirs / ours for ours, theirs in first_pairs)
    mine = figures["pellucid"]
    length = options.prompt + options.new // 2
    share = None
    if options.device == "cpu":  # the ceiling that was measured is main memory's
        share = share_of_memory(*models[mine["precision"]], batch, length, mine["steps_per_second"], ceilings)
        print(f"  decoding reaches {share:.0%} of the {ceilings.memory_read:.0f} GB/s that memory gave just now")
    same = sum(x == y for x, y in zip(a["tokens"], b["tokens"], strict=True))
    print(f"  pellucid is {ratio:.2f} times as fast, {first:.2f} times to the first token (medians of the pairs)")
    print(f"  {same} of {batch} answers are the same tokens (in lower precisions near-ties may fall either way)")
    return {
        **figures,
        "ratio": ratio,
        "first_token_ratio": first,
        "memory_read_gb_per_s": ceilings.memory_read,
        "share_of_memory_limit": share,
        "same_answers": same,
    }


if __name__ == "__main__":
    main()
