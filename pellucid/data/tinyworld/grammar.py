"""A small grammar of English: templates with choices and slots, agreement, tense, articles, pronouns.

A template is a text in which
    [one|two|]        is a choice (it may be empty, and choices may stand inside choices),
    {home}            is a slot, and {a home} the slot after its article "a" or "an",
    *live  ~live      is a verb in the tense of the teller that agrees with the subject, or with its pronoun,
    ^teach            is a verb in the past that agrees with the subject,
    +live  &live      is a verb in the tense of the teller whose subject, another one, is singular or plural.
    %                is a comma, unless another mark or the end of the sentence follows.
Choices are drawn among those whose slots are all filled, so that a template never asks for what is not there.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple, TypeVar

T = TypeVar("T")


def pick(rng: random.Random, choices: Sequence[T]) -> T:
    """One of the choices. (Only `random()` is promised to stay the same from one version of Python to the next.)"""
    return choices[int(rng.random() * len(choices))]


def shuffled(rng: random.Random, items: Sequence[T]) -> list[T]:
    """The items in a random order."""
    keys = [(rng.random(), index) for index in range(len(items))]
    return [items[index] for _, index in sorted(keys)]


class Pronouns(NamedTuple):
    """How one speaks of somebody or something without the name."""

    he: str
    him: str
    his: str
    himself: str
    plural: bool = False  # whether its verb is


SHE = Pronouns("she", "her", "her", "herself")
HE = Pronouns("he", "him", "his", "himself")
THEY = Pronouns("they", "them", "their", "themselves", plural=True)
IT = Pronouns("it", "it", "its", "itself")

_PAST = {
    "become": "became", "begin": "began", "buy": "bought", "choose": "chose", "come": "came", "do": "did",
    "draw": "drew", "feed": "fed", "get": "got", "give": "gave", "go": "went", "grow": "grew", "have": "had",
    "hold": "held", "keep": "kept", "leave": "left", "lie": "lay", "make": "made", "run": "ran", "say": "said",
    "see": "saw", "sell": "sold", "send": "sent", "sleep": "slept", "spend": "spent", "stand": "stood",
    "take": "took", "tell": "told", "wear": "wore", "win": "won",
}  # fmt: skip


def conjugate(verb: str, *, plural: bool, past: bool) -> str:
    """The third person of a verb: `conjugate("carry", plural=False, past=False)` is "carries"."""
    if verb == "be":
        return ("were" if plural else "was") if past else ("are" if plural else "is")
    ends_in_consonant_y = re.search(r"[^aeiou]y$", verb) is not None
    if past:
        if verb in _PAST:
            return _PAST[verb]
        return verb + "d" if verb.endswith("e") else verb[:-1] + "ied" if ends_in_consonant_y else verb + "ed"
    if plural:
        return verb
    return "has" if verb == "have" else _with_s(verb)


def plural_of(noun: str) -> str:
    """The plural of the nouns of this world: "geese", "donkeys", "foxes"."""
    irregular = {"goose": "geese", "sheep": "sheep", "mouse": "mice"}
    return irregular.get(noun) or _with_s(noun)


def _with_s(word: str) -> str:
    if re.search(r"[^aeiou]y$", word):
        return word[:-1] + "ies"
    return word + ("es" if re.search(r"(s|x|z|ch|sh|[^aeiou]o)$", word) or word == "go" else "s")


def with_article(noun: str) -> str:
    """The noun after "a" or "an", by its sound: "an owl", "a unicorn", "an hour"."""
    vowel = re.match(r"[aeiou]", noun, re.IGNORECASE) and not re.match(r"(uni|use|eu|ewe|one\b|once)", noun, re.I)
    silent_h = re.match(r"(hour|honest|heir|honour)", noun, re.IGNORECASE)
    return f"{'an' if vowel or silent_h else 'a'} {noun}"


def listed(names: Sequence[str]) -> str:
    """ "A", "A and B", "A, B and C" """
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def sentence(text: str) -> str:
    """The clause as a sentence: a capital at the start, a full stop unless it has its end already."""
    text = re.sub(r"%(?=\s*(?:[.,;:!?]|$))", "", " ".join(text.split())).replace("%", ",")
    text = sentence_start(text)
    return text if re.search(r"[.!?:;,][”’]?$", text) else text + "."


def sentence_start(text: str) -> str:
    """The text with a capital at its first letter."""
    return re.sub(r"^(\W*)(\w)", lambda match: match[1] + match[2].upper(), text, count=1)


def possessive(name: str) -> str:
    """ "Mara's"; names of this world that end in s take the same ending."""
    return f"{name}'s"


class _Slot(NamedTuple):
    name: str
    article: bool


class _Verb(NamedTuple):
    mark: str
    lemma: str


class _Choice(NamedTuple):
    ways: tuple[tuple[_Node, ...], ...]


_Node = str | _Slot | _Verb | _Choice
_TOKEN = re.compile(r"\[|\]|\||\{(?:a )?[\w']+\}|[*^~+&][a-z]+|[^\[\]|{}*^~+&]+")


@cache
def parse(template: str) -> tuple[_Node, ...]:
    """The parts of a template."""
    tokens = _TOKEN.findall(template)
    if "".join(tokens) != template:
        raise ValueError(f"a template with a stray bracket or mark: {template!r}")
    nodes, rest = _sequence(tokens, 0)
    if rest != len(tokens):
        raise ValueError(f"a template with a bracket too many: {template!r}")
    return nodes


def _sequence(tokens: list[str], at: int) -> tuple[tuple[_Node, ...], int]:
    nodes: list[_Node] = []
    while at < len(tokens) and tokens[at] not in "|]":
        token = tokens[at]
        if token == "[":
            ways = []
            while tokens[at] != "]":
                way, at = _sequence(tokens, at + 1)
                ways.append(way)
            nodes.append(_Choice(tuple(ways)))
        elif token[0] == "{":
            name = token[1:-1]
            nodes.append(_Slot(name.removeprefix("a "), name.startswith("a ")))
        elif token[0] in "*^~+&":
            nodes.append(_Verb(token[0], token[1:]))
        else:
            nodes.append(token)
        at += 1
    return tuple(nodes), at


@cache
def needs(template: str) -> frozenset[str]:
    """The slots that a template cannot do without: a choice needs what every one of its ways needs."""
    return _needs(parse(template))


def _needs(nodes: tuple[_Node, ...]) -> frozenset[str]:
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, _Slot):
            found.add(node.name)
        elif isinstance(node, _Choice):
            found |= frozenset.intersection(*map(_needs, node.ways))
    return frozenset(found)


def can_be_filled(template: str, slots: Set[str]) -> bool:
    """Whether there is a way through the template that asks for no other slots than these."""
    return _fits(parse(template), slots)


def _fits(nodes: tuple[_Node, ...], slots: Set[str]) -> bool:
    return all(
        node.name in slots
        if isinstance(node, _Slot)
        else not isinstance(node, _Choice) or any(_fits(way, slots) for way in node.ways)
        for node in nodes
    )


@dataclass
class Voice:
    """What fills a template: the slots, the agreement, the tense. `used` gathers the slots that were told."""

    slots: Mapping[str, str]
    plural: bool = False  # the subject as it is named in this template
    pronoun_plural: bool = False
    past: bool = False
    used: set[str] = field(default_factory=set)


def render(template: str, rng: random.Random, voice: Voice) -> str:
    """The template as text. A slot that is not filled is a KeyError, unless a choice leads round it."""
    parts: list[str] = []
    _render(parse(template), rng, voice, parts)
    return "".join(parts)


def _render(nodes: tuple[_Node, ...], rng: random.Random, voice: Voice, parts: list[str]) -> None:
    for node in nodes:
        if isinstance(node, str):
            parts.append(node)
        elif isinstance(node, _Slot):
            value = voice.slots[node.name]
            voice.used.add(node.name)
            parts.append(with_article(value) if node.article else value)
        elif isinstance(node, _Verb):
            plural = {"*": voice.plural, "^": voice.plural, "~": voice.pronoun_plural, "+": False, "&": True}[node.mark]
            parts.append(conjugate(node.lemma, plural=plural, past=voice.past or node.mark == "^"))
        else:
            _render(pick(rng, [way for way in node.ways if _fits(way, voice.slots.keys())]), rng, voice, parts)
