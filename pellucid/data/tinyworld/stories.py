"""Short stories of people who know each other: a wish, something in the way, a turn, an end."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from pellucid.data.tinyworld.grammar import pick, shuffled
from pellucid.data.tinyworld.sentences import PLAIN_FRAMES, Style, Teller
from pellucid.data.tinyworld.world import Person

if TYPE_CHECKING:
    from pellucid.data.tinyworld import TinyWorld

TOLD = Style(past=True, naming=(0.2, 0.4), compare_rate=0.0, frames=PLAIN_FRAMES)


def tell_story(rng: random.Random, world: TinyWorld, hero: Person) -> Teller:
    """A story about this person."""
    teller = Teller(rng, TOLD, world.entities)
    facts = shuffled(rng, world.facts_of(hero.name))
    teller.fill(hero, pick(rng, ["once there was [nobody like|a friend of ours called] {name}"]))
    teller.about(hero, facts[:4])
    return teller
