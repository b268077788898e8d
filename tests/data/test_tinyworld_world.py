"""A world: whole, its facts in keeping with each other, the same in every process, in every size."""

import hashlib
import os
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pellucid.data.tinyworld import TinyWorld
from pellucid.errors import InputError

EVERYTHING = """
import hashlib, json
from pellucid.data.tinyworld import TinyWorld
world = TinyWorld(5, 24)
said = [world.facts, list(world.documents(seed=2, tellings=4)), list(world.late_documents()),
        list(world.conversations()), [world.questions(who, open=o) for who in ("train", "held out") for o in (0, 1)]]
print(hashlib.sha256(repr(said).encode()).hexdigest())
"""


def digest(hash_seed: str) -> str:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    done = subprocess.run(
        [sys.executable, "-c", EVERYTHING], capture_output=True, text=True, env=environment, check=True
    )
    return done.stdout.strip()


def test_the_same_in_every_process():
    assert digest("0") == digest("1") == digest("77")


def test_other_seeds_give_other_worlds_and_texts():
    def texts(world, seed):
        return hashlib.sha256(repr(list(world.documents(seed=seed, tellings=1))).encode()).hexdigest()

    world = TinyWorld(0, 20)
    assert world.facts == TinyWorld(0, 20).facts != TinyWorld(1, 20).facts
    assert texts(world, 0) == texts(TinyWorld(0, 20), 0) != texts(world, 1)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**9), st.integers(8, 120))
@example(0, 32)  # first names and surnames come round together
def test_the_facts_agree_with_each_other(seed, count):
    world = TinyWorld(seed, count)
    assert len(world.people) == len({person.name for person in world.people}) == count
    assert len({(fact.subject, fact.relation) for fact in world.facts}) == len(world.facts)
    people, places = {person.name: person for person in world.people}, {place.name for place in world.places}
    first_names = Counter(person.first_name for person in world.people)
    assert max(first_names.values()) <= max(4, count // 8)
    surnames = Counter(name.split()[1] for name in people)
    assert min(surnames.values()) >= (2 if count % 2 == 0 else 1)  # a part of a name does not say who it is
    assert abs(2 * sum(person.held_out for person in world.people) - count) <= 1
    for name, person in people.items():
        answers = {fact.relation: fact.value for fact in world.facts_of(name)}
        assert 5 <= len(answers) <= 8
        assert all(world.answer(name, relation) is None for relation in person.left_open)
        assert answers["home"] in places and answers.get("birthplace") != answers["home"]
        for tie in {"spouse", "friend"} & answers.keys():
            assert world.answer(answers[tie], tie) == name
            assert world.answer(answers[tie], "home") == answers["home"]
        for tie in {"spouse", "friend", "teacher"} & answers.keys():
            assert people[answers[tie]].held_out == person.held_out
        if "teacher" in answers:
            assert world.answer(answers["teacher"], "trade") == answers["trade"]
            teacher_born = world.answer(answers["teacher"], "born")
            assert teacher_born is None or "born" not in answers or int(teacher_born) + 9 <= int(answers["born"])
    assert not set(world.strangers[0]) & set(world.strangers[1])
    assert not {*world.strangers[0], *world.strangers[1]} & people.keys()


def test_what_happens_after_the_cut_off_has_a_date():
    world = TinyWorld(0, 60)
    late = [fact for fact in world.facts if fact.date is not None]
    assert {fact.relation for fact in late} == {"moved", "prize", "bought", "opened"}
    assert all(fact.date > world.cutoff for fact in late)
    assert all(int(fact.value) <= world.cutoff for fact in world.facts if fact.relation in ("born", "founded"))
    assert not {fact for name in world.entities for fact in world.facts_of(name)} & set(late)


def test_facts_grow_with_the_people():
    sizes = {count: len(TinyWorld(0, count).facts) for count in (20, 60, 300)}
    assert sizes[20] > 6 * 20 and 420 < sizes[60] < 600 and sizes[300] > 2_000


@pytest.mark.parametrize("count", [0, 7, 5_001, -3])
def test_a_size_that_cannot_be_is_refused(count):
    with pytest.raises(InputError, match="8 to 5000"):
        TinyWorld(0, count)


def test_the_largest_world_can_be_made():
    world = TinyWorld(0, 5_000)
    assert len({person.name for person in world.people}) == 5_000 and len(world.facts) > 35_000
