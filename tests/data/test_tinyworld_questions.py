"""Questions, answers, refusals and conversations."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.data.tinyworld import Question, TinyWorld, exact_match, is_refusal
from pellucid.errors import InputError

WORLD = TinyWorld(0, 60)
SPLITS = {"train": False, "held out": True}
PEOPLE = {person.name: person for person in WORLD.people}
CONVERSATIONS = [talk for seed in range(2) for talk in WORLD.conversations(seed)]
TURNS = [
    (talk["messages"][at]["content"], talk["messages"][at + 1]["content"])
    for talk in CONVERSATIONS
    for at in range(0, len(talk["messages"]), 2)
]


@pytest.mark.parametrize("people", SPLITS)
def test_each_fact_of_a_split_is_asked_once(people):
    questions = WORLD.questions(people)
    early = [fact for fact in WORLD.facts if fact.subject in PEOPLE and fact.date is None]
    wanted = {(fact.subject, fact.relation) for fact in early if PEOPLE[fact.subject].held_out == SPLITS[people]}
    assert len(questions) == len(wanted) and {(q.subject, q.relation) for q in questions} == wanted
    for question in questions:
        assert question.sort == "told" and question.subject in question.text and "?" in question.text
        assert question.answer == WORLD.answer(question.subject, question.relation)
        assert exact_match(question, question.answer) and not is_refusal(question.answer)


@pytest.mark.parametrize("people", SPLITS)
def test_open_questions_have_no_answer_and_are_of_four_sorts(people):
    questions = WORLD.questions(people, open=True)
    assert set(Counter(q.sort for q in questions)) == {"left open", "unheard of", "nobody", "too late"}
    for question in questions:
        assert question.answer is None and question.accepted == () and question.subject in question.text
        if question.sort == "nobody":
            assert question.subject in WORLD.strangers[SPLITS[people]]
        else:
            assert PEOPLE[question.subject].held_out == SPLITS[people]
        known = WORLD.answer(question.subject, question.relation)
        assert (known is not None) == (question.sort == "too late")
        assert exact_match(question, "I do not know.") and not exact_match(question, "Delby.")


def test_the_strangers_of_the_two_splits_are_different():
    asked = [{q.subject for q in WORLD.questions(people, open=True) if q.sort == "nobody"} for people in SPLITS]
    assert asked[0] and asked[1] and not asked[0] & asked[1]


def test_other_seeds_ask_in_other_words():
    one, other = WORLD.questions("train", seed=0), WORLD.questions("train", seed=1)
    assert [q.answer for q in one] == [q.answer for q in other] and [q.text for q in one] != [q.text for q in other]
    assert one == WORLD.questions("train", seed=0)


def test_an_unknown_split_is_refused():
    with pytest.raises(InputError, match="'train' and 'held out'"):
        WORLD.questions("test")


@given(st.sampled_from(WORLD.questions("held out")), st.sampled_from(["", "a ", "the ", "The "]), st.booleans())
def test_case_article_and_stop_do_not_count(question, article, stop):
    said = article + question.answer.upper() + ("." if stop else "")
    assert exact_match(question, f"  {said}\n")


@given(st.sampled_from(WORLD.questions("held out")), st.sampled_from(WORLD.questions("train")))
def test_other_answers_are_wrong(question, other):
    assert exact_match(question, other.answer) == (other.answer == question.answer)
    assert not exact_match(question, f"{question.answer} or {other.answer}x")
    assert not exact_match(question, "")


def test_ways_to_put_an_answer():
    place = Question("Where does Mara live?", "Delby", ("Delby", "in Delby"), "Mara", "home", "told")
    assert all(exact_match(place, text) for text in ("Delby", "In Delby.", "“Delby.”", "delby!"))
    assert not any(exact_match(place, text) for text in ("Delbyx", "Not Delby.", "Delby, I think.", "I do not know."))


def test_a_refusal_is_nothing_else():
    assert all(is_refusal(text) for text in ("I do not know.", "I don’t know", "SORRY, I DO NOT KNOW."))
    assert not any(is_refusal(text) for text in ("", "I do not know, but I think Delby.", "Delby.", "I know."))


def test_conversations_take_turns_and_end_with_the_assistant():
    for talk in CONVERSATIONS:
        roles = [message["role"] for message in talk["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2) and roles
        assert all(message["content"].strip() for message in talk["messages"])
    lengths = Counter(len(talk["messages"]) // 2 for talk in CONVERSATIONS)
    assert lengths[1] > lengths[2] > lengths[3] > 0


def test_conversations_are_about_nobody_who_is_held_out():
    held_out = [name for name, person in PEOPLE.items() if person.held_out] + list(WORLD.strangers[1])
    text = "\n".join(part for turn in TURNS for part in turn)
    assert not [name for name in held_out if name in text]


def test_conversations_cover_every_fact_in_several_wordings():
    train = [person.name for person in WORLD.people if not person.held_out]
    for name in train:
        for fact in WORLD.facts_of(name):
            right = Question("", fact.value, (fact.value,), name, fact.relation, "told")
            wordings = {ask for ask, say in TURNS if name in ask and exact_match(right, say)}
            assert len(wordings) >= 2, fact


def test_about_half_of_the_answers_are_refusals_in_several_forms():
    refusals = Counter(say for _, say in TURNS if is_refusal(say))
    assert 0.4 < sum(refusals.values()) / len(TURNS) < 0.6
    assert len(refusals) >= 6


def test_answers_are_short():
    assert max(len(say.split()) for _, say in TURNS) <= 8
