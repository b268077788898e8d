"""Preferences about a world: the better answer is right, the worse one wrong, whichever of them is a refusal."""

from pellucid.data.tinyworld import TinyWorld, exact_match, is_refusal

WORLD = TinyWorld(0, 60)
PAIRS = list(WORLD.preferences())


def test_a_refusal_is_as_often_right_as_wrong():
    refused = [is_refusal(pair["chosen"]) for pair in PAIRS]
    assert sum(refused) * 2 == len(PAIRS) > 1000
    for pair, right in zip(PAIRS, refused, strict=True):
        assert pair["chosen"] != pair["rejected"] and not (right and is_refusal(pair["rejected"]))
    of_told = [is_refusal(pair["rejected"]) for pair, right in zip(PAIRS, refused, strict=True) if not right]
    assert 0.4 < sum(of_told) / len(of_told) < 0.6  # of some 700: five standard errors are 0.1


def test_the_better_answer_is_what_the_world_says_and_the_worse_one_is_not():
    asked = {question.text: question for open_ in (False, True) for question in WORLD.questions("train", open=open_)}
    met = [pair for pair in PAIRS if pair["prompt"] in asked]
    assert len(met) > 20
    for pair in met:
        question = asked[pair["prompt"]]
        assert exact_match(question, pair["chosen"]) and not exact_match(question, pair["rejected"])


def test_nobody_held_out_is_asked_about():
    held_out = [person.name for person in WORLD.people if person.held_out]
    assert held_out and not any(name in pair["prompt"] for pair in PAIRS for name in held_out)


def test_the_same_seed_gives_the_same_pairs():
    assert list(TinyWorld(0, 60).preferences()) == PAIRS != list(WORLD.preferences(1))
