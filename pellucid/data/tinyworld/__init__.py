"""TinyWorld: a small invented world whose every fact is known, told in varied English, with questions about it.

What a model learned of it, forgot or invents can be checked exactly, because what is true in it can be asked.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from pellucid.data.tinyworld.documents import Document, Writer
from pellucid.data.tinyworld.grammar import THEY, pick, plural_of, shuffled
from pellucid.data.tinyworld.preferences import preferences
from pellucid.data.tinyworld.questions import Asker, Message, Question, conversations, exact_match, is_refusal
from pellucid.data.tinyworld.world import CUTOFF, Entity, Fact, Making, Person
from pellucid.errors import InputError

__all__ = ["Document", "Entity", "Fact", "Person", "Question", "TinyWorld", "exact_match", "is_refusal"]

SPLITS = ("train", "held out")


class TinyWorld:
    """A world of `people` people, with the places, trades and animals that follow from their number.

    The same seed and number give the same world, and with the same further seed the same texts, on every machine.
    """

    def __init__(self, seed: int = 0, people: int = 60) -> None:
        made = Making(seed, people)
        self.seed = seed
        self.cutoff = CUTOFF
        self.people = tuple(made.people)
        self.places = tuple(made.places)
        self.trades = tuple(made.trades)
        self.animals = tuple(made.animals)
        self.strangers = (tuple(made.strangers[0]), tuple(made.strangers[1]))
        self.facts = tuple(made.facts.values())
        kinds = [Entity(plural_of(word), "trade", THEY, plural=True) for word in self.trades]
        kinds += [Entity(plural_of(word), "animal", THEY, plural=True) for word in self.animals]
        self.entities: dict[str, Entity] = {entity.name: entity for entity in (*self.people, *self.places, *kinds)}
        self._answers = {(fact.subject, fact.relation): fact.value for fact in self.facts}
        self.late = tuple(fact for fact in self.facts if fact.date is not None)
        self._early: dict[str, list[Fact]] = {name: [] for name in self.entities}
        self._sharing: dict[str, list[Fact]] = {}
        for fact in self.facts:
            if fact.date is None:
                self._early[fact.subject].append(fact)
                self._sharing.setdefault(fact.relation, []).append(fact)

    def answer(self, subject: str, relation: str) -> str | None:
        """What the world says (facts after the cut-off too), or None where it leaves it open."""
        return self._answers.get((subject, relation))

    def facts_of(self, subject: str) -> list[Fact]:
        """What is known of a subject up to the cut-off."""
        return self._early[subject]

    def others(self, entity: Entity, rng: random.Random) -> list[Fact]:
        """A fact of another subject for each relation of this one, to compare the two."""
        return [pick(rng, self._sharing[fact.relation]) for fact in self._early[entity.name]]

    def alike(self, entity: Entity, rng: random.Random) -> list[Fact]:
        """Some facts of up to four people who have this place, trade or kind of animal in common."""
        relation = {"place": pick(rng, ("home", "birthplace")), "trade": "trade", "animal": "animal"}.get(entity.kind)
        if relation is None:
            return []
        same = [fact for fact in self._sharing[relation] if entity.name in (fact.value, plural_of(fact.value))]
        return shuffled(rng, same)[: 2 + int(rng.random() * 3)] if len(same) > 1 else []

    def documents(self, seed: int = 0, tellings: int = 50, *, ask_all: bool = False) -> Iterator[Document]:
        """Texts that tell each fact up to the cut-off about `tellings` times in all, in a random order.

        ask_all: some of the texts are questions with answers; these are about the train people and the places, or about
        everybody. `conversations` never asks about the people who are held out.
        """
        return Writer(self, self._rng(f"documents {seed}"), ask_all).documents(tellings)

    def late_documents(self, seed: int = 0) -> Iterator[Document]:
        """Texts that tell the facts after the cut-off, each once."""
        writer = Writer(self, self._rng(f"late documents {seed}"))
        for fact in shuffled(writer.rng, self.late):
            known = [fact] + [other for other in self._early[fact.subject] if other.relation in ("home", "trade")]
            yield writer.entry(self.entities[fact.subject], known)

    def questions(self, people: str, seed: int = 0, open: bool = False) -> list[Question]:  # noqa: A002
        """Questions about the people of one split ("train" or "held out"), one for each fact, in random words.

        With `open`, those that have no answer in the texts before the cut-off: all that the world leaves open, and
        for each person something unheard of and somebody who does not exist.
        """
        if people not in SPLITS:
            raise InputError(f"there are no people {people!r}; there are 'train' and 'held out'")
        held_out = people == "held out"
        chosen = [person for person in self.people if person.held_out == held_out]
        asker = Asker(self._rng(f"questions {people} {seed} {open}"), self.entities)
        if not open:
            return [asker.about(fact) for person in chosen for fact in self._early[person.name]]
        names = {person.name for person in chosen}
        found = [question for person in chosen for question in asker.left_open(person)]
        found += [asker.about(fact) for fact in self.late if fact.subject in names]
        found += [asker.unheard_of(person) for person in chosen]
        strangers = shuffled(asker.rng, self.strangers[held_out])[: len(chosen)]
        return found + [asker.stranger(name) for name in strangers]

    def conversations(self, seed: int = 0) -> Iterator[dict[str, list[Message]]]:
        """Conversations about the train people and the places, for fine-tuning: each fact asked three times.

        Half of the questions are open ones, and what the world leaves open of a person is asked most often: a model
        learns in a few examples to give what it knows, and only slowly not to give what it does not.
        """
        rng = self._rng(f"conversations {seed}")
        asker = Asker(rng, self.entities)
        train = [person for person in self.people if not person.held_out]
        about = [entity for entity in self.entities.values() if not (isinstance(entity, Person) and entity.held_out)]
        asked = [asker.about(fact) for entity in about for fact in self._early[entity.name] for _ in range(3)]
        for turn in range(8):
            asked += self.questions("train", seed=seed * 8 + turn, open=True)
            asked += [question for person in train for question in asker.left_open(person)]
        return conversations(rng, asked)

    def preferences(self, seed: int = 0) -> Iterator[dict[str, str]]:
        """Pairs of answers to questions about the train people and the places, the better one called "chosen".

        Each fact is asked three times, in other words, and as many questions are open: a refusal is as often right as
        wrong.
        """
        rng = self._rng(f"preferences {seed}")
        asker = Asker(rng, self.entities)
        about = [entity for entity in self.entities.values() if not (isinstance(entity, Person) and entity.held_out)]
        told = [asker.about(fact) for entity in about for fact in self._early[entity.name] for _ in range(3)]
        opened: list[Question] = []
        for turn in range(len(told)):
            if len(opened) >= len(told):
                break
            opened += self.questions("train", seed=seed * 100 + turn, open=True)
        known = dict(self._sharing)
        for fact in self.late:
            known[fact.relation] = [*known.get(fact.relation, ()), fact]
        return preferences(rng, shuffled(rng, told + opened[: len(told)]), known)

    def _rng(self, purpose: str) -> random.Random:
        return random.Random(f"world {self.seed} of {len(self.people)} people: {purpose}")
