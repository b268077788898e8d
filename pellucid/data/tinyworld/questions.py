"""Questions about a world, those that it leaves open too; answers, refusals and conversations."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from pellucid.data.tinyworld import asking
from pellucid.data.tinyworld.grammar import HE, SHE, Voice, pick, possessive, render, shuffled, with_article
from pellucid.data.tinyworld.names import WOMEN
from pellucid.data.tinyworld.sentences import role_of
from pellucid.data.tinyworld.world import LATE, Entity, Fact, Person

Message = dict[str, str]


@dataclass(frozen=True)
class Question:
    """A question; `answer` is None where the world gives none, and `sort` says why.

    Sorts: "told" (it has an answer); "left open" (told of most people, of this one nobody knows it); "unheard of" (told
    of nobody); "nobody" (there is no such person); "too late" (it happened after the cut-off).
    """

    text: str
    answer: str | None
    accepted: tuple[str, ...]
    subject: str
    relation: str
    sort: str


class Asker:
    """Puts questions about a world's people into words."""

    def __init__(self, rng: random.Random, entities: Mapping[str, Entity]) -> None:
        self.rng = rng
        self.entities = entities

    def about(self, fact: Fact) -> Question:
        text = self._word(pick(self.rng, asking.QUESTIONS[fact.relation]), self.entities[fact.subject], fact.value)
        if fact.relation in LATE:
            return Question(text, None, (), fact.subject, fact.relation, "too late")
        return Question(text, fact.value, _accepted(fact), fact.subject, fact.relation, "told")

    def left_open(self, person: Person) -> list[Question]:
        return [
            self._open(relation, person, pick(self.rng, asking.QUESTIONS[relation]), "left open")
            for relation in person.left_open
        ]

    def unheard_of(self, person: Entity) -> Question:
        template = pick(self.rng, asking.UNHEARD)
        return self._open("unheard of", person, template, "unheard of")

    def stranger(self, name: str) -> Question:
        relation = pick(self.rng, ("born", "birthplace", "home", "trade", "animal", "favourite", "teacher", "friend"))
        stranger = Entity(name, "person", SHE if name.split()[0] in WOMEN else HE)
        return self._open(relation, stranger, pick(self.rng, asking.QUESTIONS[relation]), "nobody")

    def again(self, question: Question) -> Question:
        """The same question about a person with "he" or "she" for the name, as one asks on."""
        entity = self.entities[question.subject]
        he, _, his, _, plural = entity.pronouns
        if entity.kind != "person" or plural:
            return question
        fit = [template for template in asking.QUESTIONS[question.relation] if "{name}" not in template]
        text = self._render(pick(self.rng, fit), entity, question.answer, {"s": he, "s's": his})
        return replace(question, text=pick(self.rng, (f"And {_lower(text)}", text)))

    def _open(self, relation: str, entity: Entity, template: str, sort: str) -> Question:
        return Question(self._word(template, entity), None, (), entity.name, relation, sort)

    def _word(self, template: str, entity: Entity, value: str | None = None) -> str:
        """The question with the name, in some of the ways in which one begins to ask."""
        text = self._render(template, entity, value, {"s": entity.name, "s's": possessive(entity.name)})
        lower = text if text.startswith(entity.name) else _lower(text)
        return render(pick(self.rng, asking.CARRIERS), self.rng, Voice({"q": text, "l": lower}))

    def _render(self, template: str, entity: Entity, value: str | None, words: Mapping[str, str]) -> str:
        mate = role_of(self.entities[value]) if value and value in self.entities else "spouse"
        slots = {"name": entity.name, "his": entity.pronouns.his, "mate": mate, **words}
        return render(template, self.rng, Voice(slots))


def _lower(text: str) -> str:
    return text[0].lower() + text[1:]


def _accepted(fact: Fact) -> tuple[str, ...]:
    value = fact.value
    if fact.relation in ("born", "founded", "birthplace", "home", "guild"):
        return (value, f"in {value}", f"from {value}") if fact.relation == "birthplace" else (value, f"in {value}")
    if fact.relation in ("trade", "animal"):
        return (value, with_article(value), f"as {with_article(value)}")
    return (value,)


def normalised(text: str) -> str:
    """Case, quotation marks, white space, the final stop, a leading "it is" or "for" and an article do not count."""
    text = " ".join(text.casefold().replace("’", "'").split()).strip(" \"“”'").rstrip(".!").strip()
    return re.sub(r"^((it is|for) )?((the|an|a) )?", "", text)


def exact_match(question: Question, answer: str) -> bool:
    """Whether the text gives the answer and nothing else; for an open question, whether it refuses."""
    if question.answer is None:
        return is_refusal(answer)
    return normalised(answer) in {normalised(accepted) for accepted in question.accepted}


_REFUSALS = frozenset(normalised(text) for text in asking.REFUSALS)


def is_refusal(text: str) -> bool:
    """Whether the text says that it does not know, and nothing else."""
    return normalised(text) in _REFUSALS


def answer_text(question: Question, rng: random.Random) -> str:
    """The answer as one sentence: "Delby.", "A crow.", "It is apple cider." or "I do not know."

    A word that stands inside sentences elsewhere is not made to begin one here: to a tokenizer it would be another.
    """
    if question.answer is None:
        return pick(rng, asking.REFUSALS)
    answer = question.answer
    if answer[0].islower():
        single = question.relation in ("trade", "animal")
        answer = with_article(answer) if single else f"{asking.LEADS.get(question.relation, 'it is')} {answer}"
    return answer[0].upper() + answer[1:] + "."


def conversations(rng: random.Random, questions: Sequence[Question]) -> Iterator[dict[str, list[Message]]]:
    """The questions in a random order, in conversations of one to three turns, some with a greeting or thanks."""
    waiting = shuffled(rng, questions)
    while waiting:
        question = waiting.pop()
        turns = [(question.text, answer_text(question, rng))]
        if rng.random() < 0.06:
            turns.insert(0, pick(rng, asking.GREETINGS))
        while waiting and rng.random() < 0.2:
            following = waiting.pop()
            turns.append((following.text, answer_text(following, rng)))
        if rng.random() < 0.05:
            turns.append(pick(rng, asking.THANKS))
        roles = [({"role": "user", "content": ask}, {"role": "assistant", "content": say}) for ask, say in turns]
        yield {"messages": [message for turn in roles for message in turn]}
