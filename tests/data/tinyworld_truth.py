"""A reader of TinyWorld's texts that shares nothing with their writers: it knows the words that stand for facts."""

from __future__ import annotations

import re

from pellucid.data.tinyworld import Document, TinyWorld, names


def forms(word: str) -> set[str]:
    """A word, and its plural where it has one."""
    plural = re.sub(r"([^aeiou])y$", r"\1ies", word)
    return {word, plural} if plural != word else {word, word + "s", word + "es", word.replace("goose", "geese")}


SUBJECT = re.compile(r"\b(he|she|they)\b", re.IGNORECASE)
OBJECT = re.compile(r"\b(him|her|them|his|their)\b", re.IGNORECASE)


def sentences_of(text: str) -> list[str]:
    return re.split(r"(?<=[.!?:;”]) |\n", text)


def _pronoun_may_be_meant(line: str, person: str, document: Document) -> bool:
    """Whether what the sentence says may belong to a pronoun in it instead of the person whom it names."""
    main = document.facts[0].subject if document.facts else ""
    before = line if person != main else line.split(person.split()[0])[0]
    return bool(SUBJECT.search(line) or OBJECT.search(before))


class Reader:
    """Finds what a text names: people, places, rivers, animals' names, the words for what is known, years, numbers."""

    def __init__(self, world: TinyWorld) -> None:
        self.facts = world.facts
        strangers = {name for names_ in world.strangers for name in names_}
        self.people = {person.name for person in world.people} | strangers
        parts = {part for name in self.people for part in name.split()}
        self.kinds = [*names.TRADES, *names.ANIMALS]
        values = {fact.value for fact in world.facts} | {fact.subject for fact in world.facts}
        words = [*names.TRADES, *names.ANIMALS, *names.FAVOURITES, *names.KNOWN_FOR, *names.COLOURS]
        words = [form for word in [*words, *names.PRIZES, *names.BUILDINGS] for form in forms(word)]
        every = sorted(self.people | parts | values | set(words), key=len, reverse=True)
        self.named = re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, every)) + r"|\d+)(?!\w)")
        # What may open a sentence or an answer comes with a capital, too.
        capitals = [word[0].upper() + word[1:] for word in every if word[0].islower()]
        self.opening = re.compile(
            r"(?:^|(?<=[.:?!“\n] )|(?<=[“\n]))(?:" + "|".join(map(re.escape, capitals)) + r")(?!\w)"
        )

    def names_in(self, text: str) -> set[str]:
        found = set(self.named.findall(text))
        return found | {name[0].lower() + name[1:] for name in self.opening.findall(text) if name not in found}

    def misplaced(self, document: Document) -> set[tuple[str, str]]:
        """(somebody, what is said beside the name) where a sentence names one person and something not of theirs.

        Sentences with a pronoun that may be the subject are left out.
        """
        people = self._people_of(document)
        found = set()
        for line in sentences_of(document.text):
            names_here = self.names_in(line)
            here = {person for person in people if {person, person.split()[0]} & names_here}
            if len(here) == 1 and not _pronoun_may_be_meant(line, min(here), document):
                (person,) = here
                of_them = self.of_person(person) | {person, *person.split()}
                found |= {(person, name) for name in names_here - of_them}
        return found

    def _people_of(self, document: Document) -> set[str]:
        subjects = {word for fact in document.facts for word in (fact.subject, fact.value)}
        return (subjects | {subject for subject, _ in document.left_open}) & self.people

    def of_person(self, person: str) -> set[str]:
        """What may be said in one breath with a person: the values of the facts, and those of the home town."""
        facts = [fact for fact in self.facts if fact.subject == person]
        homes = {fact.value for fact in facts if fact.relation == "home"}
        facts += [fact for fact in self.facts if fact.subject in homes]
        words = {word for fact in facts for word in (fact.subject, fact.value, str(fact.date))}
        return words | {form for word in words for form in forms(word)}

    def masked(self, text: str) -> str:
        return self.named.sub("_", self.opening.sub("_", text))

    def unexplained(self, document: Document) -> set[str]:
        """What the text names and the document's facts (or what it says is unknown) do not."""
        said = {word for fact in document.facts for word in (fact.subject, fact.value, str(fact.date))}
        said |= {subject for subject, _ in document.left_open}
        said |= {part for name in said & self.people for part in name.split()}
        said |= {form for word in self.kinds if said & forms(word) for form in forms(word)}
        return self.names_in(document.text) - said

    def unsaid(self, document: Document) -> set[str]:
        """The subjects and values of the document's facts that its text does not give."""
        found = {word.casefold() for word in self.names_in(document.text)}
        return {
            word
            for fact in document.facts
            for word in (fact.subject, fact.value)
            if not {form.casefold() for form in forms(word)} & found and word.split()[0].casefold() not in found
        }
