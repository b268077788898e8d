"""Short stories of people who know each other: a wish, something in the way, a turn, an end."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pellucid.data.tinyworld.grammar import can_be_filled, pick, shuffled
from pellucid.data.tinyworld.merry_plots import MERRY_PLOTS
from pellucid.data.tinyworld.plots import ENDINGS, OPENINGS, PLOTS, WORK
from pellucid.data.tinyworld.scenery import DEEDS, SCENES
from pellucid.data.tinyworld.sentences import PLAIN_FRAMES, Style, Teller, role_of
from pellucid.data.tinyworld.world import COMPANIONS, Fact, Person

if TYPE_CHECKING:
    from pellucid.data.tinyworld import TinyWorld

STYLES = (
    Style(past=True, naming=(0.4, 0.3), compare_rate=0.0, frames=PLAIN_FRAMES),
    Style(past=True, naming=(0.5, 0.2), compare_rate=0.0, frames=PLAIN_FRAMES, join="\n"),
    Style(
        past=True,
        naming=(0.4, 0.3),
        compare_rate=0.05,
        report_rate=0.3,
        reports=(
            "[I have it from my aunt|they say|you must know] that {c}",
            "{c}, [or so I was told|they say|as you may have heard]",
            "now {c}",
        ),
        fillers=("[those were the days|this was before the railway|winters were hard then]", "[yes, yes|well]"),
        filler_rate=0.06,
    ),
)


def tell_story(rng: random.Random, world: TinyWorld, hero: Person) -> Teller:
    """A story about this person, with the one to whom a tie is known, in the town where the hero lives."""
    facts, words = _cast(world, hero)
    known = facts.keys() | words.keys() | {"name", "name's", "he", "him", "his"}
    teller = Teller(rng, pick(rng, STYLES), world.entities)

    def tell(ways: tuple[str, ...]) -> None:
        teller.fill(hero, pick(rng, [way for way in ways if can_be_filled(way, known)]), words, facts)

    plot = pick(
        rng,
        [
            plot
            for plot in (*PLOTS, *MERRY_PLOTS)
            if all(any(can_be_filled(way, known) for way in ways) for ways in plot)
        ],
    )
    if rng.random() < 0.2:
        tell(SCENES)
    tell(OPENINGS)
    said = {fact.relation for fact in teller.facts}
    more = [fact for fact in world.facts_of(hero.name) if fact.relation not in said]
    teller.about(hero, shuffled(rng, more)[: 1 + int(rng.random() * 3)])
    if rng.random() < 0.5:
        tell(SCENES)
    if rng.random() < 0.3:
        tell(DEEDS)
    tell(plot.wish)
    tell(plot.trouble)
    for relation in hero.left_open:
        if rng.random() < 0.15:
            teller.leave_open(hero, relation)
    tell(plot.turn)
    if "companion" in facts and any(fact is facts["companion"] for fact in teller.facts) and rng.random() < 0.5:
        other = world.entities[facts["companion"].value]
        own = [fact for fact in world.facts_of(other.name) if fact.value != hero.name]
        teller.about(other, shuffled(rng, own)[: 1 + int(rng.random() * 2)])
    tell(plot.end)
    tell(ENDINGS)
    return teller


def _cast(world: TinyWorld, hero: Person) -> tuple[dict[str, Fact], dict[str, str]]:
    """The facts that a story may tell, by slot, and the other words that fill slots."""
    own = {fact.relation: fact for fact in world.facts_of(hero.name)}
    town = {fact.relation: fact for fact in world.facts_of(own["home"].value)}
    facts = own | {relation: town[relation] for relation in ("river", "known")}
    words: dict[str, str] = {}
    if "trade" in own:
        words["piece"], words["tool"] = WORK[own["trade"].value]
    for relation in COMPANIONS:
        if relation in own:
            other = world.entities[own[relation].value]
            assert isinstance(other, Person)
            facts["companion"] = own[relation]
            facts |= {f"o_{fact.relation}": fact for fact in world.facts_of(other.name)}
            words |= _words_for(other, relation)
    return facts, words


def _words_for(other: Person, relation: str) -> Mapping[str, str]:
    bond = {"friend": "best friend", "teacher": "old teacher", "spouse": role_of(other)}[relation]
    he, him, his, _, plural = other.pronouns
    return {
        "bond": bond,
        "o_name": other.first_name,
        "o_he": he,
        "o_was": "were" if plural else "was",
        "o_him": him,
        "o_his": his,
    }
