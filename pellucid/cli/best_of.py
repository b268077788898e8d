"""`pellucid best-of`: what choosing among several answers is worth, against the tokens that they cost."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from pellucid.errors import InputError


def best_of(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A folder, a run, a GGUF file or a packaged model.")],
    prompts: Annotated[list[str], typer.Option(help="Files of prompts, as for pellucid grpo.")],
    reward: Annotated[list[str], typer.Option(help="A reward, as for pellucid grpo; several are added up.")],
    answers: Annotated[str, typer.Option(help="How many to choose among.")] = "1,2,4,8,16",
    count: Annotated[int, typer.Option(min=1, help="Prompts to ask, the first ones.")] = 50,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of an answer.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.01, help="At which answers are drawn.")] = 1.0,
    seed: Annotated[int, typer.Option(help="The same seed draws the same answers, on a CPU.")] = 0,
    picture: Annotated[Path | None, typer.Option("--picture", "-o", help="Draw the curves into this SVG file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Draw several answers to each prompt, and compare: one of them, the best by the reward, the one most agree on.

    The best of n needs the reward when it answers; the majority vote (self-consistency) does not: it takes the final
    answer that most of n end in, as told by \\boxed{}, <answer> or ####, else by the whole text.

    Example: pellucid best-of runs/grpo --prompts questions.jsonl --reward exact --answers 1,4,16 -o best-of.svg
    """
    from pellucid.alignment.best_of import check_pictures, curve, draw, draw_picture, table
    from pellucid.alignment.prompts import read_prompts
    from pellucid.alignment.rewards import find_reward
    from pellucid.alignment.templates import give_template, with_template
    from pellucid.checkpoints.describe import describe
    from pellucid.checkpoints.load import load, to_run
    from pellucid.inference.engine import Engine
    from pellucid.operations.hardware import best_precision, use_best_threads

    numbers = _numbers(answers)
    if picture is not None:
        check_pictures()
    rewards = [find_reward(name) for name in reward]
    base = describe(model)
    longest = base.config.max_positions - max_tokens
    if longest < 1:
        raise InputError(
            f"--max-tokens {max_tokens} leaves no room for a prompt: {model} holds {base.config.max_positions} tokens; "
            "make it smaller"
        )
    tokenizer = with_template(base.tokenizer)
    read = read_prompts(prompts, tokenizer, chat=True, longest=longest, too_long="drop", skip_bad=False, seed=0)
    for reason, dropped in sorted(read.counts.items()):
        if dropped and not reason.startswith("kept"):
            print(f"data {dropped:,} {reason}", file=sys.stderr)
    use_best_threads()
    loaded, own = load(model, dtype=best_precision("auto").name, quantize=to_run(None, "auto"))
    give_template(loaded, own)
    drawn = draw(
        Engine(loaded, tokenizer), read.prompts[:count], rewards, max(numbers), temperature=temperature,
        max_tokens=max_tokens, seed=seed,
    )  # fmt: skip
    points = curve(drawn, numbers, seed)
    print(json.dumps({"prompts": len(drawn), "points": [asdict(one) for one in points]}) if as_json else table(points))
    if picture is not None:
        draw_picture(points, picture)


def _numbers(text: str) -> list[int]:
    try:
        numbers = sorted({int(part) for part in text.split(",")})
    except ValueError:
        numbers = []
    if not numbers or numbers[0] < 1 or numbers[-1] > 128:
        raise InputError(f"--answers {text!r}: give numbers from 1 to 128, such as 1,2,4,8")
    return numbers
