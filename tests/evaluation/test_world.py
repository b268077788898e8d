"""The examination counts what it says it counts: known answers in, known numbers out."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from pellucid.alignment.templates import give_template
from pellucid.data.tinyworld import Question, TinyWorld
from pellucid.evaluation.world import Knowledge, Share, examine, knowledge, right_by_chance
from tests.checkpoints.tiny import CONFIGS, random_model, tiny_tokenizer

WORLD = TinyWorld(seed=3, people=20)
TRUTH = {
    question.text: question
    for people in ("train", "held out")
    for is_open in (False, True)
    for question in WORLD.questions(people, open=is_open)
}
SORTS = ("left open", "nobody", "too late", "unheard of")


def know_all(questions: Sequence[str]) -> list[str]:
    return [TRUTH[text].answer or "I do not know." for text in questions]


def refuse_all(questions: Sequence[str]) -> list[str]:
    return ["That I do not know."] * len(questions)


def invent_all(questions: Sequence[str]) -> list[str]:
    return ["The Emperor of China."] * len(questions)


def know_the_train_people(questions: Sequence[str]) -> list[str]:
    """Somebody who has learnt by heart whatever was asked, and takes everybody else for a stranger."""
    train = {person.name for person in WORLD.people if not person.held_out}
    known = {text for text in questions if TRUTH[text].subject in train}
    return [TRUTH[text].answer or "I don't know." if text in known else "I cannot say." for text in questions]


def counts(shares: dict[str, Share]) -> dict[str, int]:
    return {name: share.count for name, share in shares.items()}


def ask(answers: object) -> Knowledge:
    return knowledge(examine(WORLD, answers))  # type: ignore[arg-type]


def test_who_knows_all_is_right_and_invents_nothing() -> None:
    seen = ask(know_all)
    assert set(seen.right) == {"train", "held out"}
    assert all(share.count == share.of > 50 for share in seen.right.values())
    assert set(counts(seen.refused).values()) == {0}
    assert set(counts(seen.invented).values()) == {0}


def test_who_refuses_all_invents_nothing_and_knows_nothing() -> None:
    seen = ask(refuse_all)
    assert set(counts(seen.right).values()) == {0}
    assert all(share.count == share.of for share in seen.refused.values())
    assert set(counts(seen.invented).values()) == {0}


def test_who_invents_all_is_caught_in_every_sort() -> None:
    seen = ask(invent_all)
    assert set(seen.invented) == {"all", *SORTS}
    assert all(share.count == share.of > 0 for share in seen.invented.values())
    assert seen.invented["all"].of == sum(seen.invented[sort].of for sort in SORTS)
    assert set(counts(seen.refused).values()) == {0}


def test_who_learnt_the_conversations_by_heart_does_not_pass() -> None:
    seen = ask(know_the_train_people)
    assert seen.right["train"].count == seen.right["train"].of
    assert seen.right["held out"].count == 0
    assert seen.refused["held out"].count == seen.refused["held out"].of


def test_answers_go_to_their_own_questions() -> None:
    replies = examine(WORLD, lambda questions: [f"about {text}" for text in questions])
    assert all(reply.text == f"about {reply.question.text}" for reply in replies)
    held_out = {person.name for person in WORLD.people if person.held_out}
    told = [reply for reply in replies if reply.question.sort == "told"]
    assert {reply.question.subject for reply in told if reply.people == "held out"} <= held_out
    assert not {reply.question.subject for reply in told if reply.people == "train"} & held_out


@pytest.mark.parametrize(
    ("share", "shown"),
    [(Share(9, 10), "90% (9 of 10)"), (Share(0, 7), "0% (0 of 7)"), (Share(0, 0), "none asked")],
)
def test_a_share_says_of_how_many(share: Share, shown: str) -> None:
    assert str(share) == shown


def test_every_question_draws_answers_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model to which all tokens are alike hardly two answers are."""
    model, tokenizer = random_model(CONFIGS["llama"].model_copy(update={"max_positions": 256})), tiny_tokenizer()
    tokenizer = give_template(model, tokenizer)
    for parameter in model.parameters():
        parameter.data.zero_()
    drawn: list[str] = []

    def judged(question: Question, text: str) -> bool:
        drawn.append(text)
        return len(drawn) % 4 == 0

    monkeypatch.setattr("pellucid.evaluation.world.exact_match", judged)
    world = TinyWorld(0, 10)
    asked = sum(len(world.questions("held out", 0, without)) for without in (False, True))
    assert right_by_chance(world, model, tokenizer) == Share(asked, 4 * asked)
    assert len(set(drawn)) > 0.8 * len(drawn) == 0.8 * 4 * asked
