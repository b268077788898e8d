"""The texts of a world: which facts each tells, in what kind of text."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pellucid.data.tinyworld import asking, lists
from pellucid.data.tinyworld.grammar import Voice, pick, render, sentence_start, shuffled
from pellucid.data.tinyworld.narrators import NARRATORS
from pellucid.data.tinyworld.questions import Asker, Question, answer_text
from pellucid.data.tinyworld.sentences import Teller
from pellucid.data.tinyworld.stories import tell_story
from pellucid.data.tinyworld.world import Entity, Fact, Person

if TYPE_CHECKING:
    from pellucid.data.tinyworld import TinyWorld


@dataclass(frozen=True)
class Document:
    """A text, the facts that it states, and the (subject, relation) of which it says that nobody knows them."""

    kind: str  # "encyclopaedia", "story", "conversation", "question", "open question"
    text: str
    facts: tuple[Fact, ...]
    left_open: tuple[tuple[str, str], ...] = ()


class Writer:
    """Writes the texts of one world from one stream of random numbers."""

    def __init__(self, world: TinyWorld, rng: random.Random, ask_all: bool = False) -> None:
        self.world = world
        self.ask_all = ask_all
        self.rng = rng
        self.asker = Asker(rng, world.entities)
        self._late: dict[str, list[Fact]] = {}
        for fact in world.late:
            self._late.setdefault(fact.subject, []).append(fact)

    def documents(self, tellings: int) -> Iterator[Document]:
        """Round by round, each subject whose facts are not told often enough is given a text of some kind."""
        told = dict.fromkeys(self.world.entities, 0.0)
        while waiting := [name for name, times in told.items() if times < tellings]:
            for name in shuffled(self.rng, waiting):
                document = self.write(self.world.entities[name])
                yield document
                for fact in document.facts:
                    told[fact.subject] += 1 / len(self.world.facts_of(fact.subject))
                if document.left_open and not document.facts:
                    told[name] += 0.1
                told[name] += 0.01  # so that nobody of whom little is known is told of without end

    def write(self, entity: Entity) -> Document:
        """One text about this subject; about people who are held out a question only with `ask_all`."""
        asked = self.ask_all or not (isinstance(entity, Person) and entity.held_out)
        drawn = self.rng.random()
        if asked and drawn < 0.55:
            if drawn < 0.19:
                return self.question(entity)
            if drawn < 0.40 and isinstance(entity, Person):
                return self.open_question(entity)
            return self.conversation(entity)
        if isinstance(entity, Person) and self.rng.random() < 0.25:
            return self.story(entity)
        return self.register(entity) if self.rng.random() < 0.1 else self.entry(entity)

    def entry(self, entity: Entity, facts: Sequence[Fact] = ()) -> Document:
        """What is known of one subject, told by some narrator."""
        rng, style = self.rng, pick(self.rng, NARRATORS)
        teller = Teller(rng, style, self.world.entities)
        known = list(facts or self.world.facts_of(entity.name))
        if not facts and rng.random() < 0.4:
            known = shuffled(rng, known)[: 2 + int(rng.random() * (len(known) - 1))]
        heading = render(pick(rng, style.heading), rng, Voice({"name": entity.name}))
        heading = sentence_start(heading)
        teller.fill(entity, pick(rng, style.openers))
        self._tell(teller, entity, known)
        if alike := self.world.alike(entity, rng):
            teller.list_alike(entity, alike)
        teller.fill(entity, pick(rng, style.closers))
        text = "\n".join(part for part in (heading, teller.text()) if part)
        return Document("encyclopaedia", text, tuple(teller.facts), tuple(teller.left_open))

    def _tell(self, teller: Teller, entity: Entity, known: Sequence[Fact]) -> None:
        others = self.world.others(entity, self.rng)
        open_here = entity.left_open if isinstance(entity, Person) else ()
        for relation in open_here:
            if self.rng.random() < 0.3:
                teller.leave_open(entity, relation)
        teller.about(entity, known, others)
        for relation in open_here:
            if (entity.name, relation) not in teller.left_open and self.rng.random() < 0.6:
                teller.leave_open(entity, relation)

    def register(self, entity: Entity) -> Document:
        """The lines of a register."""
        rng, known = self.rng, shuffled(self.rng, self.world.facts_of(entity.name))
        values = {fact.relation: fact.value for fact in known} | {"role": "spouse"}
        labels = [render(lists.LABELS[fact.relation], rng, Voice(values)) for fact in known]
        join = pick(rng, ("\n", ". ", "; "))
        text = pick(rng, (f"{sentence_start(entity.name)}\n", f"Name: {entity.name}{join}")) + join.join(labels) + "."
        return Document("encyclopaedia", text, tuple(known))

    def story(self, person: Person) -> Document:
        teller = tell_story(self.rng, self.world, person)
        return Document("story", teller.text(), tuple(teller.facts), tuple(teller.left_open))

    def question(self, entity: Entity) -> Document:
        """One to four questions about a subject, with their answers."""
        chosen = shuffled(self.rng, self.world.facts_of(entity.name))[: 1 + int(self.rng.random() * 4)]
        shape = pick(self.rng, asking.QUIZZES)
        parts = [self._quiz(shape, self.asker.about(fact)) for fact in chosen]
        return Document("question", "\n".join(parts), tuple(chosen))

    def open_question(self, person: Person) -> Document:
        """Questions that have no answer here, answered so."""
        rng = self.rng
        questions = [self.asker.unheard_of(person), *self.asker.left_open(person), *self.asker.left_open(person)]
        questions += [self.asker.stranger(pick(rng, self.world.strangers[0])) for _ in range(4)]
        questions += [self.asker.about(fact) for fact in self._late.get(person.name, ())]
        chosen = shuffled(rng, questions)[: 1 + int(rng.random() * 3)]
        shape = pick(rng, asking.QUIZZES)
        left_open = tuple((question.subject, question.relation) for question in chosen)
        return Document("open question", "\n".join(self._quiz(shape, question) for question in chosen), (), left_open)

    def _quiz(self, shape: str, question: Question) -> str:
        return render(shape, self.rng, Voice({"q": question.text, "a": answer_text(question, self.rng)}))

    def conversation(self, entity: Entity) -> Document:
        """Two people talk about a subject; the second and later questions may say "she" for the name."""
        rng = self.rng
        chosen = shuffled(rng, self.world.facts_of(entity.name))[: 2 + int(rng.random() * 3)]
        questions = [self.asker.about(fact) for fact in chosen]
        turns: list[tuple[str, str]] = []
        if rng.random() < 0.3:
            turns.append((self._say(pick(rng, asking.OPENINGS)), self._say(asking.REPLIES)))
        for index, question in enumerate(questions):
            asked = self.asker.again(question) if index and rng.random() < 0.5 else question
            reaction = self._say(asking.REACTIONS) if index and rng.random() < 0.3 else ""
            turns.append((reaction + asked.text, answer_text(question, rng)))
        one, other = pick(rng, asking.SPEAKERS)
        shape = pick(rng, ("“{ask}”\n“{say}”", f"{one}: {{ask}}\n{other}: {{say}}"))
        lines = [render(shape, rng, Voice({"ask": ask, "say": say})) for ask, say in turns]
        return Document("conversation", "\n".join(lines), tuple(chosen))

    def _say(self, template: str) -> str:
        return render(template, self.rng, Voice({}))
