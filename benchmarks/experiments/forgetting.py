"""New skill against lost skill: one model learns of new people, held to what it knew by each of several means.

    python benchmarks/experiments/forgetting.py [--seeds 0 1 2] [--means plain ewc ...] [-o runs/forgetting]

For each seed a model is made that knows a small invented world and answers questions about it: that of `pellucid demo`.
Then it learns to answer about people of another world, whom no text has told of, by conversations alone; the
same number of rows of them by every means. New skill: right answers about the new people, in wordings that no
conversation had. Lost skill: right answers about the people it knew, and the loss on held-out text of their world.

The table has the mean over seeds and half of the spread. forgetting.svg has new against lost, forgetting.jsonl a
line for every run; the last line that is printed is JSON. What has been run is not run again: the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pellucid.alignment.recipe import SFTRecipe
from pellucid.alignment.sft import fine_tune
from pellucid.checkpoints.load import load
from pellucid.data.packing import Stream
from pellucid.data.shards import open_shards
from pellucid.data.tinyworld import SPLITS, Question, TinyWorld, exact_match
from pellucid.data.tinyworld.questions import conversations
from pellucid.evaluation.first_model import BASE, TEXT, TRAIN, TUNED, WORLD, Demo, pretrain_recipe, sft_recipe
from pellucid.evaluation.world import ask_in_chat
from pellucid.operations.hardware import describe
from pellucid.training.evaluate import evaluate
from pellucid.training.loop import Outcome
from pellucid.training.pretrain import pretrain
from pellucid.training.recipe import parse_recipe

NEW_PEOPLE, WORDINGS, ASKED = 12, 6, 2  # wordings of each question to learn from, and to be asked in
EPOCHS, CONTEXT, BATCH, LR = 10, 128, 8, 5e-4
ROWS = 64  # of held-out text
REPLAY = {"fraction": 0.5}
MEANS: dict[str, dict[str, Any]] = {
    "plain": {},
    "smaller steps": {"optim": {"lr": LR / 5}},
    "replay": {"replay": REPLAY},
    "lora": {"adapter": {"rank": 8, "alpha": 16}, "optim": {"lr": 4 * LR}},
    "l2": {"keep": {"penalty": "l2", "strength": 0.1}},
    "ewc": {"keep": {"penalty": "ewc", "strength": 300.0}},
    "fip": {"keep": {"penalty": "fip", "strength": 3.0, "rows": 64}},
    "fip + replay": {"keep": {"penalty": "fip", "strength": 10.0, "rows": 64}, "replay": REPLAY},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--means", nargs="+", choices=list(MEANS), default=list(MEANS))
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/forgetting"))
    given = parser.parse_args()
    began = time.monotonic()
    lines = []
    for seed in given.seeds:
        demo = Demo(given.output / f"seed-{seed}", seed, WORLD)
        make_base(demo)
        new, conversation_file = new_people(demo)
        lines.append(measured(demo, new, "before", None))
        lines += [learn(demo, new, conversation_file, means) for means in given.means]
    seconds = time.monotonic() - began
    with (given.output / "forgetting.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    rows = {name: summary([line for line in lines if line["means"] == name]) for name in ("before", *given.means)}
    print_table(rows)
    plot(lines, given.output / "forgetting.svg")
    print(describe())
    print(json.dumps({"benchmark": "forgetting", "seeds": given.seeds, "seconds": round(seconds), "rows": rows}))


def make_base(demo: Demo) -> None:
    """A model that knows a world and answers questions about it, in `demo.folder`."""
    demo.begin()
    demo.write_text()
    done(pretrain(pretrain_recipe(demo), say=quiet))
    done(fine_tune(sft_recipe(demo), say=quiet)[0])


def new_people(demo: Demo) -> tuple[list[Question], Path]:
    """Questions about the people of another world, none of whose names is known, and conversations about them."""
    known = {person.name for person in demo.world.people}
    other = TinyWorld(1000 + demo.seed, NEW_PEOPLE)

    def questions(seeds: range) -> list[Question]:
        every = [question for seed in seeds for split in SPLITS for question in other.questions(split, seed)]
        return [question for question in every if question.subject not in known]

    learnt = questions(range(WORDINGS))
    texts = {question.text for question in learnt}
    asked = [question for question in questions(range(100, 100 + ASKED)) if question.text not in texts]
    draw = random.Random(demo.seed)
    file = demo.folder / "new-people.jsonl"
    if not file.is_file():
        made = conversations(draw, learnt)
        file.write_text("".join(json.dumps(conversation) + "\n" for conversation in made), encoding="utf-8")
    return asked, file


def learn(demo: Demo, new: Sequence[Question], file: Path, means: str) -> dict[str, Any]:
    """The model of `demo` learns of the new people by these means; what it knows then."""
    fields = MEANS[means]
    old_text = str(demo.folder / TEXT / TRAIN)
    replay, keep = fields.get("replay"), fields.get("keep")
    if keep is not None and keep["penalty"] != "l2":
        keep = {**keep, "data": old_text}
    folder = demo.folder / means.replace(" + ", "-").replace(" ", "-")
    content = {
        "run": str(folder),
        "seed": demo.seed,
        "base": str(demo.folder / TUNED),
        "adapter": fields.get("adapter"),
        "data": {
            "train": str(file),
            "context": CONTEXT,
            "too_long": "drop",
            "validation_fraction": 0,
            "replay": {**replay, "data": old_text} if replay else None,
        },
        "keep": keep,
        "optim": {"lr": LR, "final": 0.05, **fields.get("optim", {})},
        "train": {"epochs": EPOCHS, "batch": BATCH, "save_every": 25},
        "report": {"questions": 1, "max_tokens": 4},
    }
    outcome, _ = fine_tune(parse_recipe(content, SFTRecipe, "the benchmark's recipe"), say=quiet)
    done(outcome)
    return {**measured(demo, new, means, folder), "steps": outcome.steps}


def measured(demo: Demo, new: Sequence[Question], means: str, folder: Path | None) -> dict[str, Any]:
    """Shares of right answers, and nats a token on held-out text of the old world."""
    model, tokenizer = load(str(folder or demo.folder / TUNED), dtype="float32")
    old = [question for split in SPLITS for question in demo.world.questions(split)]
    ask = ask_in_chat(model, tokenizer)
    right = [
        sum(map(exact_match, questions, ask([question.text for question in questions]))) / len(questions)
        for questions in (new, old)
    ]
    held_out = Stream(open_shards(demo.folder / BASE / "data" / "validation"), WORLD.context, 0, shuffle=False)
    loss = evaluate(model, tokenizer, held_out, ROWS).loss
    line = {"seed": demo.seed, "means": means, "new": right[0], "old": right[1], "loss": loss}
    print(f"seed {demo.seed}, {means}: {right[0]:.0%} of new, {right[1]:.0%} of old, loss {loss:.3f}", file=sys.stderr)
    return line


def done(outcome: Outcome) -> None:
    """Ends here where a run was stopped."""
    if outcome.signal is not None:
        sys.exit(128 + outcome.signal)


def quiet(line: str) -> None:
    """What the runs say is in their folders."""


def summary(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The mean over seeds, and the largest less the smallest."""
    found: dict[str, Any] = {}
    for name in ("new", "old", "loss"):
        values = [line[name] for line in lines]
        found[name] = round(statistics.mean(values), 4)
        found[f"{name}_spread"] = round(max(values) - min(values), 4)
    return found


def print_table(rows: dict[str, dict[str, Any]]) -> None:
    print("| means | right about new people | right about old people | loss on old text |")
    print("|---|---|---|---|")
    for name, row in rows.items():
        new, old = (f"{row[part]:.0%} ± {row[f'{part}_spread'] / 2:.0%}" for part in ("new", "old"))
        print(f"| {name} | {new} | {old} | {row['loss']:.3f} ± {row['loss_spread'] / 2:.3f} |")


def plot(lines: Sequence[dict[str, Any]], file: Path) -> None:
    """New against lost: each run a point, the means' means named."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 5))
    for name in dict.fromkeys(line["means"] for line in lines):
        own = [line for line in lines if line["means"] == name]
        x, y = ([100 * line[part] for line in own] for part in ("new", "old"))
        drawn = axes.plot(x, y, "o", alpha=0.6)[0]
        axes.annotate(name, (statistics.mean(x), statistics.mean(y)), (6, 6), textcoords="offset points")
        axes.plot(statistics.mean(x), statistics.mean(y), "x", color=drawn.get_color())
    axes.set_xlabel("right about new people, %")
    axes.set_ylabel("right about the people it knew, %")
    axes.set_title("new skill against lost skill")
    figure.tight_layout()
    figure.savefig(file)


if __name__ == "__main__":
    main()
