"""From facts to sentences: pieces are put into frames; frames fuse facts, contrast people, report what others say."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pellucid.data.tinyworld import lists, phrases
from pellucid.data.tinyworld.grammar import (
    HE,
    SHE,
    Voice,
    listed,
    needs,
    pick,
    possessive,
    render,
    sentence,
    shuffled,
)
from pellucid.data.tinyworld.world import COMPANIONS, LATE, Entity, Fact, Person

RELATIONS = frozenset(lists.LABELS) | frozenset(LATE)
Pieces = dict[str, list[tuple[str, frozenset[str]]]]


def _by_relation(templates: Sequence[str]) -> Pieces:
    found: Pieces = {relation: [] for relation in RELATIONS}
    for template in templates:
        wanted = needs(template) & RELATIONS
        for relation in wanted:
            found[relation].append((template, wanted))
    return found


# In the frames V is a verb phrase that agrees with the subject as it is named there, H one that agrees with its
# pronoun, P an aside, N a noun, W a clause of its own.
PIECES = {
    "V": _by_relation(phrases.VERBS),
    "H": _by_relation(phrases.VERBS),
    "P": _by_relation(phrases.ASIDES),
    "N": _by_relation(phrases.NOUNS),
    "W": _by_relation(phrases.WHOLES),
}
PLAIN_FRAMES = [
    "{s} {V1}",
    "{W1}",
    "{s} {V1} and {V2}",
    "{name}, {N1}, {V1}",
    "{P1}, {s} {V1}",
]
FRAMES = [
    *PLAIN_FRAMES,
    *PLAIN_FRAMES,
    "{s} {V1} and also {V2}",
    "{s} {V1}, {V2} and {V3}",
    "{name}, {N1}, {V1} and {V2}",
    "{name}, {P1}, {V1}",
    "{P1}, {s} {V1} and {V2}",
    "{name}, {who} {V1}, {V2}",
    "{name}, {who} {V1} and {V2}, {V3}",
    "{W1}, and {he} {H1}",
    "{W1}; {he} {H1}",
    "{W1}, and {W2}",
    "{s} {V1}, and {W1}",
    "{s} {V1}; {W1}",
    "{s} {V1}, and {he} {H1}[| too| as well]",
    "as for {name}, {he} {H1}",
    "what is [told|known|said] of {name} is that {he} {H1}",
    "ask [anyone|a neighbour|the people there] about {name} and you will hear that {he} {H1}",
    "one thing is [certain|sure|well known]: {s} {V1}",
    "it is [no secret|known to all|easily said|easy to learn] that {s} {V1}",
]
REPORTED_FRAMES = ["{s} {V1}", "{s} {V1} and {V2}", "{W1}", "{name}, {N1}, {V1}", "{name}, {who} {V1}, {V2}"]
UNLIKE = [
    "{s} {V1}, [but|while|whereas] {other} {O1}",
    "unlike {other}, {who} {O1}, {s} {V1}",
    "while {other} {O1}, {name} {V1}",
    "{name} is not to be [mixed up with|mistaken for] {other}, {who} {O1}: {he} {H1}",
    "{other} {O1}; {name}, on the other hand, {V1}",
]
ALIKE = [
    "like {other}, {s} {V1}",
    "{s} {V1}, [just like|as does|and so does] {other}",
    "each of the two, {name} and {other}, {O1}",
    "{name} {V1}, and {other} {O1}[| too| as well]",
]
_PIECE = re.compile(r"\{([VHPNWO])(\d)\}")


@dataclass(frozen=True)
class Style:
    """How a narrator speaks. The texts are templates; {c} in `reports` is a clause, `fillers` state no fact."""

    openers: Sequence[str] = ("",)
    closers: Sequence[str] = ("",)
    reports: Sequence[str] = ()
    fillers: Sequence[str] = ()
    past: bool = False
    naming: tuple[float, float] = (0.45, 0.2)  # how often the full name and the first name come again; else the pronoun
    report_rate: float = 0.15
    filler_rate: float = 0.1
    compare_rate: float = 0.12
    frames: Sequence[str] = tuple(FRAMES)
    heading: Sequence[str] = ("",)
    join: str = " "


@dataclass
class Record:
    """What the world says of one entity: its facts by relation."""

    entity: Entity
    facts: Mapping[str, Fact]


@dataclass
class Teller:
    """Tells facts in one style and keeps account of what it has said."""

    rng: random.Random
    style: Style
    entities: Mapping[str, Entity]
    sentences: list[str] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)
    left_open: list[tuple[str, str]] = field(default_factory=list)
    _named: str = ""  # the one of whom a pronoun would be understood

    def about(self, entity: Entity, facts: Sequence[Fact], others: Sequence[Fact] = ()) -> None:
        """Tell these facts of one entity, in any order; `others` are facts of others to compare them with."""
        left = {fact.relation: fact for fact in shuffled(self.rng, facts)}
        while left:
            comparable = [fact for fact in others if fact.relation in left and fact.subject != entity.name]
            if comparable and self.rng.random() < self.style.compare_rate:
                self._compare(entity, left, pick(self.rng, comparable))
            elif self.style.reports and self.rng.random() < self.style.report_rate:
                clause = self._frame(entity, left, REPORTED_FRAMES)
                report, _ = self._say(pick(self.rng, self.style.reports), entity, {"c": clause})
                self.sentences.append(sentence(report))
            else:
                self.sentences.append(sentence(self._frame(entity, left, self.style.frames)))
            if self.style.fillers and self.rng.random() < self.style.filler_rate:
                self.fill(entity, pick(self.rng, self.style.fillers))

    def fill(
        self,
        entity: Entity,
        template: str,
        words: Mapping[str, str] | None = None,
        facts: Mapping[str, Fact] | None = None,
    ) -> None:
        """A sentence between the facts (an opening, an aside, a step of a story); it tells those of `facts` it uses."""
        facts = facts or {}
        text, used = self._say(
            template, entity, {**(words or {}), **{slot: fact.value for slot, fact in facts.items()}}
        )
        self.facts += [facts[slot] for slot in sorted(used & facts.keys()) if facts[slot] not in self.facts]
        if text:
            self.sentences.append(sentence(text))

    def list_alike(self, entity: Entity, facts: Sequence[Fact]) -> None:
        """Several people in one sentence, who all live in this place, follow this trade, keep such an animal."""
        people = {"all": listed([fact.subject for fact in facts])}
        self.fill(entity, pick(self.rng, lists.ROLLS[facts[0].relation]), people)
        self.facts += facts

    def leave_open(self, entity: Entity, relation: str) -> None:
        """Say that the world does not know this."""
        self.fill(entity, pick(self.rng, phrases.UNKNOWN[relation]))
        self.left_open.append((entity.name, relation))

    def text(self) -> str:
        return self.style.join.join(self.sentences)

    def _say(self, template: str, entity: Entity, slots: Mapping[str, str]) -> tuple[str, set[str]]:
        voice = self._voice(entity, named="name" in needs(template))
        voice.slots = {**voice.slots, **slots}
        text = render(template, self.rng, voice)
        if "name" in voice.used or "name's" in voice.used or "s" in voice.used:
            self._named = entity.name
        return text, voice.used

    def _voice(self, entity: Entity, *, named: bool, pronoun: bool = False) -> Voice:
        """The slots of the grammar, with the subject as it can be named at this point of the text."""
        full, short = self.style.naming
        drawn = self.rng.random()
        first = entity.first_name if isinstance(entity, Person) else entity.name
        known = self._named == entity.name
        name = first if known and drawn >= full else entity.name
        as_pronoun = known and not named and (pronoun or drawn >= full + short)
        he, him, his, himself, plural = entity.pronouns
        return Voice(
            {
                "s": he if as_pronoun else name,
                "s's": his if as_pronoun else possessive(name),
                "name": name,
                "name's": possessive(name),
                "he": he,
                "him": him,
                "his": his,
                "himself": himself,
                "role": role_of(entity),
                "who": "who" if entity.kind in ("person", "trade") else "which",
            },
            plural=plural if as_pronoun else entity.plural,
            pronoun_plural=plural,
            past=self.style.past,
        )

    def _frame(self, entity: Entity, left: dict[str, Fact], frames: Sequence[str]) -> str:
        """One frame filled with pieces; what it tells is taken out of `left`."""
        for _ in range(6):
            chosen = self._choose(pick(self.rng, frames), left)
            if chosen is not None:
                return self._fill_frame(*chosen, entity, left)
        relation = next(iter(left))
        template, _ = pick(self.rng, [piece for piece in PIECES["V"][relation] if piece[1] <= left.keys()])
        return self._fill_frame("{s} {V1}", {"V1": template}, entity, left)

    def _choose(self, frame: str, left: Mapping[str, Fact]) -> tuple[str, dict[str, str]] | None:
        """A piece for each place of the frame, no fact told twice; None if there are none."""
        open_relations = list(left)
        pieces: dict[str, str] = {}
        for kind, digit in _PIECE.findall(frame):
            relation = pick(self.rng, open_relations) if open_relations else None
            fit = [piece for piece in PIECES[kind][relation] if piece[1] <= set(open_relations)] if relation else []
            if not fit:
                return None
            template, tells = pick(self.rng, fit)
            if any(template.split()[:2] == piece.split()[:2] for piece in pieces.values()):
                return None  # "came into the world in ... and came into the world in ..."
            pieces[kind + digit] = template
            open_relations = [other for other in open_relations if other not in tells]
        return frame, pieces

    def _fill_frame(self, frame: str, pieces: dict[str, str], entity: Entity, left: dict[str, Fact]) -> str:
        wanted = needs(frame)
        opens_with_clause = frame.startswith("{W1}")
        named = "name" in wanted or (opens_with_clause and _names(pieces["W1"]))
        voice = self._voice(entity, named=named)
        self._named = entity.name
        values = self._values(left)
        if unclear := self._pronoun_unclear(entity, pieces, left):
            voice.slots = {**voice.slots, "he": voice.slots["name"]}
            voice.pronoun_plural = False
        slots = dict(voice.slots)
        for place, template in pieces.items():
            inner = self._piece_voice(entity, place, voice, opens_with_clause, unclear)
            inner.slots = {**inner.slots, **values}
            slots[place] = render(template, self.rng, inner)
            for relation in [relation for relation in left if relation in inner.used]:
                self.facts.append(left.pop(relation))
        voice.slots = slots
        if unclear:
            self._named = ""
        return render(frame, self.rng, voice)

    def _pronoun_unclear(self, entity: Entity, pieces: Mapping[str, str], left: Mapping[str, Fact]) -> bool:
        """Whether a pronoun after these pieces could also mean the other person of whom they tell."""
        told = frozenset[str]().union(*(needs(template) for template in pieces.values())) & frozenset(COMPANIONS)
        return any(self.entities[left[relation].value].pronouns == entity.pronouns for relation in told)

    def _piece_voice(self, entity: Entity, place: str, voice: Voice, opens_with_clause: bool, unclear: bool) -> Voice:
        if place[0] == "W" and not (place == "W1" and opens_with_clause):
            return self._voice(entity, named=unclear, pronoun=not unclear)
        plural = voice.pronoun_plural if place[0] == "H" else voice.plural
        return Voice(voice.slots, plural=plural, pronoun_plural=voice.pronoun_plural, past=voice.past)

    def _values(self, left: Mapping[str, Fact]) -> dict[str, str]:
        values = {relation: fact.value for relation, fact in left.items()}
        for fact in left.values():
            if fact.date:
                values["year"] = str(fact.date)
        if "spouse" in left:
            values["mate"] = role_of(self.entities[left["spouse"].value])
        return values

    def _compare(self, entity: Entity, left: dict[str, Fact], other: Fact) -> None:
        """A sentence on the same relation of two, which are alike in it or not."""
        fact = left[other.relation]
        frame = pick(self.rng, ALIKE if fact.value == other.value else UNLIKE)
        alone = [template for template, tells in PIECES["V"][fact.relation] if tells == {fact.relation}]
        one = self._voice(entity, named="name" in needs(frame))
        two = self._voice(self.entities[other.subject], named=True)
        slots = {**one.slots, "other": other.subject}
        for place, source, voice in (("V1", fact, one), ("H1", fact, one), ("O1", other, two)):
            plural = voice.pronoun_plural if place == "H1" else voice.plural
            inner = Voice(
                {**voice.slots, **self._values({fact.relation: source})}, plural, voice.pronoun_plural, one.past
            )
            slots[place] = render(pick(self.rng, alone), self.rng, inner)
        one.slots = slots
        self.sentences.append(sentence(render(frame, self.rng, one)))
        self.facts.append(left.pop(fact.relation))
        if "{O1}" in frame or fact.value == other.value:
            self.facts.append(other)
        self._named = ""  # a pronoun would now be unclear


def _names(template: str) -> bool:
    return bool(needs(template) & {"name", "name's"})


def role_of(entity: Entity) -> str:
    return {SHE: "wife", HE: "husband"}.get(entity.pronouns, "spouse")
