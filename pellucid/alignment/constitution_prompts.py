"""What a constitutional run asks: prompts to learn from, and prompts that are only measured on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pellucid.alignment import constitution_measure as measuring
from pellucid.alignment import world_rules
from pellucid.alignment.candidates import Prompt, read_prompts
from pellucid.alignment.constitution import BUNDLED
from pellucid.alignment.constitution_measure import HELPFUL, RED_TEAM, Asked
from pellucid.alignment.constitution_recipe import ConstitutionRecipe, PromptsRecipe
from pellucid.data.messages import text_of
from pellucid.data.order import permutation
from pellucid.data.tinyworld import SPLITS
from pellucid.data.tinyworld.harm import obeying, tempting
from pellucid.errors import InputError, did_you_mean


@dataclass(frozen=True, slots=True)
class Prompts:
    """What the model is asked: to learn from, and only to be measured on."""

    red_team: list[Prompt]
    helpful: list[Prompt]
    held_out: list[Asked]

    def digests(self) -> dict[str, str]:
        """By which they are known again."""
        groups = {"red_team": self.red_team, "helpful": self.helpful, "held_out": [one.prompt for one in self.held_out]}
        return {
            name: hashlib.sha256("\n".join(prompt.key for prompt in prompts).encode()).hexdigest()[:16]
            for name, prompts in groups.items()
        }


def prompts_of(recipe: ConstitutionRecipe) -> Prompts:
    """The recipe's prompts. Raises `InputError` for a file that cannot be read, or holds too few to part."""
    if recipe.world is not None:
        world, times = recipe.world.made, range(recipe.world.times)
        tempted = [one for seed in times for one in tempting(world, SPLITS[0], seed)]
        told = [one for seed in times for one in world.questions(SPLITS[0], seed)]
        learnt = {one.text for one in (*tempted, *told)}
        if recipe.world.obeying is not None:
            learnt |= {text_of(talk["messages"][0]) for talk in obeying(world, recipe.seed)}
        return Prompts(
            world_rules.prompts_of(tempted), world_rules.prompts_of(told), measuring.world_asks(world, learnt)
        )
    given = recipe.prompts or PromptsRecipe()
    red, held_red = parted(given.red_team, given.held_out, recipe.seed)
    helpful, held_helpful = parted(given.helpful, given.held_out, recipe.seed)
    held = [(RED_TEAM, one) for one in held_red] + [(HELPFUL, one) for one in held_helpful]
    return Prompts(red, helpful, [Asked(group, one) for group, one in held])


def parted(names: Sequence[str], fraction: float, seed: int) -> tuple[list[Prompt], list[Prompt]]:
    """The prompts to learn from and those held out, in a random order."""
    found = [prompt for name in names for prompt in read_prompts(bundled_prompts(name))]
    if len(found) < 2:
        raise InputError(f"{', '.join(names)}: there are {len(found)} prompts; give two at least, one to be held out")
    order = permutation(len(found), "prompts", seed)(np.arange(len(found)))
    held = min(max(1, round(fraction * len(found))), len(found) - 1)
    mixed = [found[place] for place in order]
    return mixed[held:], mixed[:held]


def bundled_prompts(name: str) -> str:
    """The path of prompts that come with the package, as bundled:red-team; any other name as it is."""
    if not name.startswith("bundled:"):
        return name
    known = sorted(path.stem for path in BUNDLED.glob("*.jsonl"))
    short = name.removeprefix("bundled:")
    if short not in known:
        raise InputError(
            f"{name}: no such prompts are bundled{did_you_mean(short, known) or '; there are ' + ', '.join(known)}"
        )
    return str(BUNDLED / f"{short}.jsonl")
