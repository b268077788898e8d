"""Critique, revision and judgement: by a model, against transformers' forward pass, and by the rules of a world."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from pellucid.alignment import world_rules
from pellucid.alignment.candidates import Prompt, prompt_of
from pellucid.alignment.constitution import Constitution, Principle, read_constitution
from pellucid.alignment.critique import Draft, Judgement, Pair, Said, Voice, check_room, preference, questions
from pellucid.checkpoints.save import About, save
from pellucid.data.tinyworld import TinyWorld
from pellucid.data.tinyworld.harm import tempting, verdict
from pellucid.errors import InputError
from pellucid.models.config import ModelConfig
from tests.checkpoints.tiny import SIZES, random_model, tiny_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = ModelConfig(**SIZES | {"max_positions": 640, "num_layers": 2})
BRIEF = Principle(name="brief", critique="Is it long?", revision="Halve it.", choice="Which is the briefer one?")
PROMPT = prompt_of("Where is the inn?", "prompts:1")
# A template that says whose turn it is, as chat models have it.
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def voice() -> Voice:
    return Voice(random_model(CONFIG), tokenizer(), max_tokens=6, temperature=1.0, together=4)


def tokenizer() -> Any:
    made = tiny_tokenizer()
    made.templates["default"] = TEMPLATE
    return made


def test_the_letters_are_as_likely_as_transformers_says(voice: Voice, tmp_path: Path) -> None:
    """fp32 logits of both differ by less than 1e-4; a log-probability by at most twice that."""
    save(voice.engine.model, voice.tokenizer, tmp_path / "model", about=About(base="nothing"))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    pair = Pair(PROMPT, "Over there, behind the mill.", "No.", BRIEF)
    (found,) = voice.judge([pair])
    expected = []
    for question in questions(pair):
        ids = voice.tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True
        ).ids
        with torch.no_grad():
            chances = theirs(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        expected += [float(chances[voice.tokenizer.encode(letter)[0]]) for letter in "AB"]
    assert found.log_probs == pytest.approx(expected, abs=2e-4)
    a, b, swapped_a, swapped_b = expected
    one, other = (
        math.exp(a) / (math.exp(a) + math.exp(b)),
        math.exp(swapped_b) / (math.exp(swapped_a) + math.exp(swapped_b)),
    )
    assert found.probability == pytest.approx((one + other) / 2, abs=2e-4)
    assert found.stood_first == pytest.approx(one, abs=2e-4)


def test_a_letter_of_several_tokens_is_the_sum_of_them(voice: Voice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pellucid.alignment.critique.LETTERS", ("on", "B th"))
    assert [len(voice.tokenizer.encode(letter)) for letter in ("on", "B th")] == [1, 3]
    chat = [{"role": "user", "content": "x"}]
    ((_, whole),) = voice.letters([chat])
    ids, letters = voice.ids(chat), voice.tokenizer.encode("B th")
    with torch.no_grad():
        chances = voice.engine.model(torch.tensor([[*ids, *letters]])).log_softmax(-1)[0]
    assert whole == pytest.approx(sum(float(chances[len(ids) - 1 + n, one]) for n, one in enumerate(letters)), abs=1e-3)


def test_swapping_the_answers_turns_the_judgement_round(voice: Voice) -> None:
    pair = Pair(PROMPT, "Over there.", "Not here.", BRIEF)
    there, back = voice.judge([pair, Pair(PROMPT, pair.second, pair.first, BRIEF)])
    assert there.probability + back.probability == pytest.approx(1, abs=1e-6)
    assert there.stood_first == pytest.approx(1 - back.stood_last, abs=1e-6)
    same = voice.judge([Pair(PROMPT, "Here.", "Here.", BRIEF)])[0]
    assert same.probability == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize(
    ("first", "last", "probability", "swayed"),
    [(0.9, 0.8, 0.85, False), (0.9, 0.1, 0.5, True), (0.4, 0.5, 0.45, False)],
)
def test_both_orders_count(first: float, last: float, probability: float, swayed: bool) -> None:
    judgement = Judgement(first, last)
    assert judgement.probability == pytest.approx(probability) and judgement.swayed is swayed


@given(st.floats(-2000, 0), st.floats(-2000, 0))
def test_a_preference_is_a_probability(first: float, second: float) -> None:
    assert 0 <= preference(first, second) <= 1
    assert preference(first, second) + preference(second, first) == pytest.approx(1)


def test_the_judge_is_shown_the_whole_conversation() -> None:
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    one, other = questions(Pair(Prompt(tuple(messages)), "first", "second", BRIEF))
    assert "user: a\nassistant: b\nuser: c" in one and BRIEF.choice in one
    assert one.index("first") < one.index("second") and other.index("second") < other.index("first")


def test_the_revision_is_asked_for_with_the_critique_in_sight(monkeypatch: pytest.MonkeyPatch, voice: Voice) -> None:
    heard: list[list[Any]] = []
    script: Iterator[list[str]] = iter([["Too long."], ["Yes."]])

    def say(chats: Sequence[Sequence[Any]], seeds: Sequence[int]) -> list[Said]:
        heard.append([list(chat) for chat in chats])
        return [Said(text) for text in next(script)]

    monkeypatch.setattr(voice, "say", say)
    (revision,) = voice.critique([Draft(PROMPT, "Yes, it is, indeed.", BRIEF)])
    assert (revision.critique, revision.answer) == ("Too long.", "Yes.")
    first, second = [[one["content"] for one in chats[0]] for chats in heard]
    assert first == ["Where is the inn?", "Yes, it is, indeed.", "Is it long?"]
    assert second == [*first, "Too long.", "Halve it."]


def test_what_is_said_depends_on_the_seed_and_not_on_what_is_asked_beside_it(voice: Voice) -> None:
    drafts = [Draft(PROMPT, text, BRIEF, seed) for seed, text in enumerate(("a", "b", "c"))]
    together = voice.critique(drafts)
    assert voice.critique(drafts[1:2]) == together[1:2]
    assert voice.critique([Draft(PROMPT, "b", BRIEF, 7)]) != together[1:2]


@pytest.mark.parametrize("judging", [False, True])
def test_a_prompt_that_leaves_no_room_is_named_before_anything_is_asked(voice: Voice, judging: bool) -> None:
    constitution = Constitution(name="x", principles=(BRIEF,))
    check_room(voice.tokenizer, 640, 6, [PROMPT], constitution, judging=judging)
    with pytest.raises(
        InputError, match=r"prompts:9: the prompt, .* may take [0-9]+ tokens, and the context holds 640"
    ):
        prompts = [PROMPT, prompt_of("a" * 600, "prompts:9")]
        check_room(voice.tokenizer, 640, 6, prompts, constitution, judging=judging)


def test_what_has_room_can_be_asked(voice: Voice) -> None:
    """The longest prompt that `check_room` lets pass goes through both phases."""
    constitution = Constitution(name="x", principles=(BRIEF,))
    fitting = (
        prompt for length in range(640, 0, -1) if fits(voice, prompt := prompt_of("a" * length, "p"), constitution)
    )
    prompt = next(fitting)
    answer = voice.tokenizer.decode([70] * 6)
    voice.critique([Draft(prompt, answer, BRIEF)])
    voice.judge([Pair(prompt, answer, answer[:2], BRIEF)])
    assert len(str(prompt.messages[0]["content"])) > 200


def fits(voice: Voice, prompt: Prompt, constitution: Constitution) -> bool:
    try:
        for judging in (True, False):
            check_room(voice.tokenizer, 640, 6, [prompt], constitution, judging=judging)
    except InputError:
        return False
    return True


WORLD = TinyWorld(0, 20)
SECRETS, KINDNESS, HONESTY = read_constitution("tinyworld").principles
TEMPTED = {question.sort: prompt for question, prompt in
           zip(tempting(WORLD, "train"), world_rules.prompts_of(tempting(WORLD, "train")), strict=True)}  # fmt: skip
TOLD = world_rules.prompts_of(WORLD.questions("train"))[0]
HARMFUL = {"secret": "A stolen goose.", "insult": "He is a liar.", "left open": "A mason.", "nobody": "In 1850."}


@pytest.mark.parametrize("sort", HARMFUL)
def test_the_rules_revise_the_harm_that_the_principle_forbids(sort: str) -> None:
    prompt = TEMPTED[sort]
    about = {"secret": SECRETS, "insult": KINDNESS}.get(sort, HONESTY)
    for principle in (SECRETS, KINDNESS, HONESTY):
        (revision,) = world_rules.criticise([Draft(prompt, HARMFUL[sort], principle, 1)])
        seen = verdict(world_rules.question_of(prompt), revision.answer)
        assert (seen.reception == "refusing") == (principle == about)
        assert (revision.answer == HARMFUL[sort]) == (principle != about) == (revision.critique == world_rules.NOTHING)
    (revision,) = world_rules.criticise([Draft(prompt, HARMFUL[sort], about, 1)])
    assert world_rules.criticise([Draft(prompt, revision.answer, about, 2)])[0].answer == revision.answer


def test_the_rules_judge_by_the_principle_and_by_the_truth() -> None:
    right = world_rules.question_of(TOLD).answer or ""
    prompt = TEMPTED["secret"]
    pairs = [
        ((TOLD, right, "I do not know."), 1.0),
        ((TOLD, "Nowhere.", "I do not know."), 0.0),
        ((TOLD, "I don't know.", "I do not know."), 0.5),
        ((prompt, "A stolen goose.", "He is a liar."), 0.0),
        ((prompt, "He is a liar.", "In Delby."), 0.5),
    ]
    found = world_rules.judge([Pair(*pair, SECRETS) for pair, _ in pairs])
    assert [one.probability for one in found] == [chance for _, chance in pairs]
    assert not any(one.swayed for one in found)
