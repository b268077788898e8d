"""Does a constitution make a model harmless, and does it stay helpful? Counted in TinyWorlds, over several seeds.

    python benchmarks/experiments/constitution.py [--seeds 3] [--run runs/constitution-effect] [--steps 400]

Of each seed: a world, a small model of its texts, which first learns to obey whatever it is asked (it gives secrets
away, insults, invents), and then both phases of Constitutional AI by the bundled constitution of TinyWorld. Critic and
judge are the world's rules: a model of this size cannot criticise itself. Printed: help and harm on questions about
people of whom no conversation was, greedy, as the mean of the seeds and their spread. A run that was stopped goes on.
The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from pellucid.alignment.constitution_measure import Measure
from pellucid.alignment.constitution_recipe import ConstitutionRecipe
from pellucid.alignment.constitution_run import constitute
from pellucid.evaluation.first_model import BASE, WORLD, Demo, pretrain_recipe
from pellucid.training.pretrain import pretrain
from pellucid.training.recipe import parse_recipe

SIZE = replace(WORLD, people=16, tellings=120, hidden_size=96, layers=3, heads=3, context=128, vocab_size=1024)


def recipe_of(demo: Demo) -> ConstitutionRecipe:
    context = demo.size.context
    content: dict[str, Any] = {
        "run": str(demo.folder / "constitution"),
        "base": str(demo.folder / BASE),
        "seed": demo.seed,
        "precision": "float32",
        "constitution": "tinyworld",
        "world": {
            "seed": demo.seed,
            "people": demo.size.people,
            "obeying": tuning(context, 300, 1e-3),
        },
        "rounds": 2,
        "draws": 4,
        "pairs": 4,
        "answers": {"max_tokens": 24, "together": 64},
        "sft": tuning(context, 60, 3e-4),
        "dpo": {
            "data": {"context": context, "too_long": "drop"},
            "optim": {"lr": 1e-4, "warmup": 5},
            "train": {"steps": 60, "batch": 4, "evaluate_every": 30, "save_every": 30},
        },
    }
    return parse_recipe(content, ConstitutionRecipe, "the benchmark's recipe")


def tuning(context: int, steps: int, lr: float) -> dict[str, Any]:
    return {
        "data": {"context": context, "too_long": "drop", "validation_fraction": 0.02},
        "optim": {"lr": lr, "warmup": 10},
        "train": {"steps": steps, "batch": 8, "evaluate_every": steps, "save_every": 100, "keep": 1},
        "report": {"questions": 3, "max_tokens": 24},
    }


def measured(folder: Path, seed: int, steps: int) -> dict[str, list[Measure]]:
    """Help and harm of the models of one seed, by their names."""
    demo = Demo(folder / f"seed-{seed}", seed, replace(SIZE, steps=steps))
    demo.begin()
    demo.write_text()
    stopped = pretrain(pretrain_recipe(demo), say=lambda line: None).signal
    ended = constitute(recipe_of(demo)) if stopped is None else None
    if ended is None or ended.signal is not None:
        raise SystemExit("stopped: the same command goes on")
    return ended.measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--run", type=Path, default=Path("runs/constitution-effect"))
    parser.add_argument("--steps", type=int, default=400, help="of pretraining")
    options = parser.parse_args()
    started = time.perf_counter()
    found = [measured(options.run, seed, options.steps) for seed in range(options.seeds)]
    lines = []
    for number, first in enumerate(found[0]["base"]):
        shares = {name: [one[name][number].share for one in found] for name in found[0]}
        lines.append({"what": first.what, **shares})
        cells = [f"{statistics.fmean(each):6.0%} ± {spread(each):4.0%}" for each in shares.values()]
        print(f"{first.what:48}" + "".join(f"{cell:>16}" for cell in cells))
    print(f"columns: {', '.join(found[0])}; {options.seeds} seeds, {time.perf_counter() - started:.0f} s")
    print(json.dumps({"benchmark": "constitution", "seeds": options.seeds, "measures": lines}))


def spread(values: list[float]) -> float:
    """The standard deviation between seeds."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


if __name__ == "__main__":
    main()
