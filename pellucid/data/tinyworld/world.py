"""A small world whose every fact is known: people, places, trades and animals, and what holds of each."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pellucid.data.tinyworld import names
from pellucid.data.tinyworld.grammar import HE, IT, SHE, THEY, Pronouns, pick, plural_of, shuffled
from pellucid.errors import InputError

CUTOFF = 1910  # the last year that the texts before the cut-off know
FEWEST_PEOPLE, MOST_PEOPLE = 8, 5_000
COMPANIONS = ("spouse", "friend", "teacher")
LATE = ("moved", "prize", "bought", "opened")


@dataclass(frozen=True)
class Fact:
    """`value` is the one answer to what `relation` asks of `subject`; `date` is its year where it came to be in one."""

    subject: str
    relation: str
    value: str
    date: int | None = None


@dataclass(frozen=True)
class Entity:
    """Somebody or something that facts are about: a person, a place, all who follow a trade, all animals of a kind."""

    name: str
    kind: str  # "person", "place", "trade", "animal"
    pronouns: Pronouns
    plural: bool = False


@dataclass(frozen=True)
class Person(Entity):
    """Somebody. Of the relations in `left_open` nothing is known, though for most people it is."""

    first_name: str = ""
    held_out: bool = False  # no training text asks a question about them
    left_open: tuple[str, ...] = ()


class Making:
    """The facts of a world, drawn one after the other from one stream of random numbers."""

    def __init__(self, seed: int, count: int) -> None:
        if not FEWEST_PEOPLE <= count <= MOST_PEOPLE:
            raise InputError(f"a world of {count} people: ask for {FEWEST_PEOPLE} to {MOST_PEOPLE}")
        self.rng = random.Random(f"a world of {count} people, seed {seed}")
        self.facts: dict[tuple[str, str], Fact] = {}
        self.places = self._make_places(max(4, count // 5))
        self.people, self.strangers = self._make_people(count)
        self.trades = self._make_kinds("trade", names.TRADES, max(6, count // 4))
        self.animals = self._make_kinds("animal", names.ANIMALS, max(5, count // 5))
        self.favourites = shuffled(self.rng, names.FAVOURITES)[: max(6, count // 3)]
        for held_out in (False, True):
            self._live([person.name for person in self.people if person.held_out == held_out])
        self._leave_open()
        self._go_on()

    def tell(self, subject: str, relation: str, value: str, date: int | None = None) -> None:
        self.facts[subject, relation] = Fact(subject, relation, value, date)

    def value(self, subject: str, relation: str) -> str | None:
        fact = self.facts.get((subject, relation))
        return fact.value if fact else None

    def _make_places(self, count: int) -> list[Entity]:
        every = [start + end for start in names.PLACE_STARTS for end in names.PLACE_ENDS]
        places = [Entity(name, "place", IT) for name in shuffled(self.rng, every)[:count]]
        rivers, known_for = shuffled(self.rng, names.RIVERS), shuffled(self.rng, names.KNOWN_FOR)
        for index, place in enumerate(places):
            self.tell(place.name, "river", rivers[index % len(rivers)])
            self.tell(place.name, "founded", str(1102 + int(self.rng.random() * 598)))
            self.tell(place.name, "known", known_for[index % len(known_for)])
        return places

    def _make_people(self, count: int) -> tuple[list[Person], tuple[list[str], list[str]]]:
        """The people, and names of nobody: many for training texts, others for the evaluation.

        A full name belongs to one person. First names are shared by a few, surnames by two (more once they run out), so
        that a part of a name does not yet say who it is.
        """
        rng, each = self.rng, max(8, count // 6)
        firsts = {SHE: shuffled(rng, names.WOMEN)[:each], HE: shuffled(rng, names.MEN)[:each], THEY: names.EITHER}
        surnames = shuffled(rng, [start + end for start in names.SURNAME_STARTS for end in names.SURNAME_ENDS])
        used, spare = surnames[: (count + 1) // 2], surnames[(count + 1) // 2 :] or surnames
        held_out = shuffled(rng, [index % 2 == 1 for index in range(count)])
        people: list[Person] = []
        taken: set[str] = set()
        for index in range(count):
            pronouns = THEY if index % 15 == 14 else (SHE if index % 2 else HE)
            own, surname = firsts[pronouns], used[index % len(used)]
            in_turn = (own[(index // 2 + step) % len(own)] for step in range(len(own)))
            first = next((one for one in in_turn if f"{one} {surname}" not in taken), own[index // 2 % len(own)])
            name = f"{first} {surname}"
            while name in taken:
                name = f"{first} {pick(rng, used)}"
            taken.add(name)
            people.append(Person(name, "person", pronouns, first_name=first, held_out=held_out[index]))
        nobody: list[str] = []
        many = min(20 * count, 20_000)
        any_first = [*firsts[SHE], *firsts[HE]]
        while len(nobody) < count + many:
            # One in six recombines the names of others, the rest have a surname that nobody has.
            name = f"{pick(rng, any_first)} {pick(rng, pick(rng, [used, *[spare] * 5]))}"
            if name not in taken:
                taken.add(name)
                nobody.append(name)
        return people, (nobody[:many], nobody[many:])

    def _make_kinds(self, kind: str, words: Sequence[str], count: int) -> list[str]:
        """Some of the trades (each has its guild house somewhere) or animals (each wears a colour on fair days)."""
        chosen = shuffled(self.rng, words)[:count]
        for word in chosen:
            if kind == "trade":
                self.tell(plural_of(word), "guild", pick(self.rng, self.places).name)
            else:
                self.tell(plural_of(word), "ribbon", pick(self.rng, names.COLOURS))
        return chosen

    def _live(self, people: list[str]) -> None:
        """Couples, friends, pupils and their teachers: one tie for each, and then what each has alone."""
        rng, people = self.rng, shuffled(self.rng, people)
        pairs = [(people[at], people[at + 1]) for at in range(0, len(people) * 7 // 10 - 1, 2)]
        pupils = people[2 * len(pairs) :]
        born: dict[str, int] = {}
        for index, (one, other) in enumerate(pairs):
            relation, home = ("spouse" if index % 2 else "friend"), pick(rng, self.places).name
            year = 1832 + int(rng.random() * 40)
            for person, companion in ((one, other), (other, one)):
                self.tell(person, relation, companion)
                born[person] = year + int(rng.random() * 7)
                self._settle(person, born[person], home, pick(rng, self.trades))
        for pupil in pupils:
            teacher = pick(rng, people[: 2 * len(pairs)])
            self.tell(pupil, "teacher", teacher)
            home, trade = self.facts[teacher, "home"].value, self.facts[teacher, "trade"].value
            self._settle(pupil, born[teacher] + 9 + int(rng.random() * 9), home, trade)

    def _settle(self, person: str, born: int, home: str, trade: str) -> None:
        rng = self.rng
        birthplace = pick(rng, self.places).name
        while birthplace == home:
            birthplace = pick(rng, self.places).name
        self.tell(person, "born", str(born))
        self.tell(person, "birthplace", birthplace)
        self.tell(person, "home", home)
        self.tell(person, "trade", trade)
        self.tell(person, "animal", pick(rng, self.animals))
        self.tell(person, "favourite", pick(rng, self.favourites))

    def _leave_open(self) -> None:
        """Name the animals, then take one fact from about six people in ten: nobody in this world knows it.

        What the facts of others give away is not left open: who married whom, the trade of teachers and pupils.
        """
        pets = shuffled(self.rng, names.PETS)
        pets = [title + pet for title in names.PET_TITLES for pet in pets]
        taught = {fact.subject: fact.value for fact in self.facts.values() if fact.relation == "teacher"}
        for index, person in enumerate(self.people):
            gone: tuple[str, ...] = ()
            if self.rng.random() < 0.6:
                fit = [("born",), ("birthplace",), ("favourite",), ("pet",), ("animal", "pet")]
                fit += [("teacher",)] if person.name in taught else []
                fit += [("trade",)] if person.name not in {*taught, *taught.values()} else []
                gone = pick(self.rng, fit)
            self.tell(person.name, "pet", pets[index % len(pets)])
            self.people[index] = replace(person, left_open=gone)
            for relation in gone:
                del self.facts[person.name, relation]

    def _go_on(self) -> None:
        """What happens after the cut-off: every third person moves, wins or buys something; places open buildings."""
        for person in shuffled(self.rng, self.people)[: len(self.people) // 3 + 1]:
            date, relation = CUTOFF + 1 + int(self.rng.random() * 4), pick(self.rng, LATE[:3])
            home, animal = self.value(person.name, "home"), self.value(person.name, "animal")
            values = {
                "moved": [place.name for place in self.places if place.name != home],
                "prize": names.PRIZES,
                "bought": [kind for kind in self.animals if kind != animal],
            }
            self.tell(person.name, relation, pick(self.rng, values[relation]), date)
        for place in shuffled(self.rng, self.places)[: len(self.places) // 2]:
            date = CUTOFF + 1 + int(self.rng.random() * 4)
            self.tell(place.name, "opened", pick(self.rng, names.BUILDINGS), date)
