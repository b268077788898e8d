"""What training takes: all weights, LoRA or DoRA beside them, and QLoRA; each in a process of its own.

    python benchmarks/adapters.py [--model smollm2] [--rows 4] [--context 256] [--rank 16]

Memory is the peak of the process, the loading of the model included, above what it was after the imports; "held" is
what stays from step to step: weights, and AdamW's two averages of what is trained. Speed is that of the fastest of
three steps, the first left out. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from pellucid.operations.ceilings import measure_ceilings
from pellucid.operations.hardware import describe

WAYS: dict[str, dict[str, Any] | None] = {
    "all weights": None,
    "LoRA": {},
    "DoRA": {"dora": True},
    "QLoRA": {"quantize": "nf4"},
}
STEPS = 4


def peak() -> int:
    """The most memory that this program has held, in bytes."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


def contender(way: str, model: str, rows: int, context: int, rank: int, precision: str, again: bool) -> dict[str, Any]:
    """A few steps of one way, on random tokens, and what they took."""
    import torch

    from pellucid.alignment.policy import AdapterRecipe, open_policy
    from pellucid.data.examples import Examples
    from pellucid.training.loss import next_token_loss
    from pellucid.training.optimizers import make_optimizer
    from pellucid.training.recipe import OptimRecipe
    from pellucid.training.setting import checkpoint_blocks
    from pellucid.training.step import take_gradient

    before = peak()
    fields = WAYS[way]
    policy, _ = open_policy(model, None if fields is None else AdapterRecipe(rank=rank, **fields))
    policy.train()
    if again:
        checkpoint_blocks(policy)
    optimizers = make_optimizer(policy, OptimRecipe())
    tokens = torch.randint(policy.config.vocab_size, (rows, context + 1), generator=torch.Generator().manual_seed(0))
    places = torch.arange(context).repeat(rows, 1)
    examples = Examples(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), places, torch.zeros_like(places))
    autocast = None if precision == "float32" else getattr(torch, precision)
    seconds = []
    for _ in range(STEPS):
        began = time.perf_counter()
        take_gradient(policy, examples, next_token_loss, autocast=autocast)
        optimizers.step()
        optimizers.zero_grad()
        seconds.append(time.perf_counter() - began)
    trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    weights = sum(tensor.nbytes for tensor in (*policy.parameters(), *policy.buffers()))
    return {
        "trained": trained,
        "weights": weights,
        "held": weights + 2 * 4 * trained,
        "peak": peak() - before,
        "tokens_per_second": rows * context / min(seconds[1:]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    for name, default in {"rows": 4, "context": 256, "rank": 16}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--precision", default="auto", help="auto: the faster one here, for all of them")
    parser.add_argument("--again", action="store_true", help="train.activation_checkpointing")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        print(json.dumps(contender(**json.loads(arguments.contender))))
        return
    from pellucid.training.precision import best_training_precision

    chosen = best_training_precision(arguments.precision)
    print(describe())
    print(f"precision {chosen.reason}")
    ceiling = measure_ceilings((chosen.name,)).matmul[chosen.name]
    print(f"ceiling   {ceiling:.0f} GFLOP/s {chosen.name}, in the same minute")
    common = {name: getattr(arguments, name) for name in ("model", "rows", "context", "rank", "again")}
    found = {}
    print("| | trained | weights | held | peak | tokens/s |\n|---|---:|---:|---:|---:|---:|")
    for way in WAYS:
        told = json.dumps({"way": way, "precision": chosen.name, **common})
        command = [sys.executable, "-W", "ignore", __file__, "--contender", told]
        one = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        sizes = " | ".join(f"{one[name] / 2**20:,.0f} MiB" for name in ("weights", "held", "peak"))
        print(f"| {way} | {one['trained']:,} | {sizes} | {one['tokens_per_second']:,.0f} |", flush=True)
        found[way] = one
    print(json.dumps({"benchmark": "adapters", "precision": chosen.name, **common, "found": found}))


if __name__ == "__main__":
    main()
