"""What adapters cost a step of the engine: answers of the base, of one adapter, and of three side by side.

    python benchmarks/live_adapters.py [--model smollm2] [--rank 16] [--rows 1,8,32] [--context 200]

Steps of one token a row, taken in turn, the fastest of each kind counts; and the same for a prompt of --context tokens.
An adapter that is merged takes the time of the base, but answers for itself alone. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from itertools import cycle, islice

import torch

from pellucid import LLM
from pellucid.inference.runner import Runner
from pellucid.inference.step import Chunk, Step
from pellucid.models.adapters import AdapterConfig, add_adapter, use_adapter
from pellucid.operations.hardware import describe

NAMES = ("one", "two", "three")
ROUNDS = 40
BLOCK = 16


def step(adapters: Sequence[str | None], start: int, tokens: int) -> Step:
    """A chunk of so many tokens for each of the adapters, behind `start` tokens that stand in the cache."""
    blocks = -(-(start + tokens) // BLOCK)
    return Step(
        tuple(
            Chunk([number % 99 + 1] * tokens, start, list(range(number * blocks, (number + 1) * blocks)), 1, adapter)
            for number, adapter in enumerate(adapters)
        ),
        (),
    )


def fastest(runner: Runner, steps: Mapping[str, Step], rounds: int) -> dict[str, float]:
    """Seconds of each."""
    best = dict.fromkeys(steps, float("inf"))
    for _ in range(rounds):
        for name, one in steps.items():
            started = time.perf_counter()
            runner.run(one)
            best[name] = min(best[name], time.perf_counter() - started)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rows", default="1,8,32")
    parser.add_argument("--context", type=int, default=200)
    arguments = parser.parse_args()
    rows = [int(part) for part in arguments.rows.split(",")]
    llm = LLM(arguments.model, num_blocks=16)
    model = llm.engine.model
    for number, name in enumerate(NAMES):
        add_adapter(model, AdapterConfig(rank=arguments.rank), name, seed=number)
    use_adapter(model, None)
    runner = Runner(model, (max(rows) + 1) * -(-(arguments.context + 1) // BLOCK), BLOCK)
    print(f"{describe()}\n{arguments.model}, rank {arguments.rank}, steps: {runner.how}")
    found = {}
    for count in rows:
        kinds: dict[str, Sequence[str | None]] = {"base": [None] * count, "one adapter": ["one"] * count}
        if count >= 4:
            mixed = islice(cycle((None, *NAMES)), count)
            kinds["base and three"] = sorted(mixed, key=lambda name: name or "")
        steps = {kind: step(adapters, arguments.context, 1) for kind, adapters in kinds.items()}
        found[f"{count} at once"] = fastest(runner, steps, ROUNDS)
    prompts = {"base": step([None], 0, arguments.context), "one adapter": step(["one"], 0, arguments.context)}
    found[f"a prompt of {arguments.context}"] = fastest(runner, prompts, ROUNDS // 8)
    for what, best in found.items():
        times = ", ".join(f"{kind} {1000 * one:.1f} ms ({one / best['base']:.2f}x)" for kind, one in best.items())
        print(f"{what:>18}: {times}")
    print(json.dumps({"benchmark": "live_adapters", "threads": torch.get_num_threads(), "seconds": found}))


if __name__ == "__main__":
    main()
