"""Collections of preferences: every choice is kept at once, whenever the session ends, and nothing is drawn twice."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pytest

from pellucid.alignment.candidates import Candidates, Prompt, prompt_of
from pellucid.alignment.collection import Collection, Tally
from pellucid.alignment.judges import Judge, Judged
from pellucid.data.sources import read_records
from pellucid.errors import InputError, PellucidError

ABOUT = {"model": "m", "answers": 3, "temperature": 1.0}
PROMPTS = [prompt_of(f"question {n}", f"file:{n}") for n in range(12)]


class Drawing:
    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, prompts: Sequence[Prompt]) -> list[Candidates]:
        self.asked += [prompt.place for prompt in prompts]
        return [
            Candidates(one, (f"a {one.place}", "b", "c") if one.place != "file:5" else ("same",)) for one in prompts
        ]


BOTH = Judged(((0, 1), (2, 1)))


def patient(most: int, judged: Judged = BOTH) -> Judge:
    """A judge that stops after so many prompts."""

    def judge(several: Iterable[Candidates]) -> Iterator[Judged]:
        for number, _ in enumerate(several):
            if number == most:
                return
            yield judged

    return judge


def pairs(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_it_is_left_and_gone_on_with(tmp_path: Path) -> None:
    path, draw = tmp_path / "p.jsonl", Drawing()
    tally = Collection(path, ABOUT).collect(PROMPTS, draw, patient(4), "me")
    assert tally == Tally(prompts=4, pairs=8) and len(pairs(path)) == 8
    assert pairs(path)[1] == {
        "prompt": [{"role": "user", "content": "question 0"}],
        "chosen": [{"role": "assistant", "content": "c"}],
        "rejected": [{"role": "assistant", "content": "b"}],
        "judge": "me",
    }
    again = Collection(path, ABOUT)
    assert [one.place for one in again.left(PROMPTS)] == [f"file:{n}" for n in range(4, 12)]
    tally = again.collect(PROMPTS, draw, patient(99), "me")
    assert tally == Tally(prompts=7, pairs=14, alike=1) and len(draw.asked) == len(set(draw.asked)) == 12
    assert Collection(path, ABOUT).left(PROMPTS) == []
    records = list(read_records([path], wanted="preference"))
    assert len(records) == 22 and records[0].content["chosen"] == [{"role": "assistant", "content": "a file:0"}]


def test_a_prompt_without_a_choice_is_not_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    tally = Collection(path, ABOUT).collect(PROMPTS[:2], Drawing(), patient(2, Judged((), 1)), "me")
    assert tally == Tally(prompts=2, passed=2, swayed=2)
    assert not path.exists() and Collection(path, ABOUT).left(PROMPTS[:3]) == PROMPTS[2:3]


def test_a_prompt_on_which_the_judge_talked_nonsense_is_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    tally = Collection(path, ABOUT).collect(PROMPTS[:1], Drawing(), patient(1, Judged((), 0, 2)), "me")
    assert tally.unusable == 2 and Collection(path, ABOUT).left(PROMPTS[:1]) == PROMPTS[:1]


@pytest.mark.parametrize("lost", [1, 150, 200, 300])
def test_a_prompt_of_which_some_pairs_were_cut_off_is_decided_again(lost: int, tmp_path: Path) -> None:
    path, three = tmp_path / "p.jsonl", patient(2, Judged(((0, 1), (2, 1), (0, 2))))
    Collection(path, ABOUT).collect(PROMPTS[:2], Drawing(), three, "me")
    whole = path.read_bytes()
    path.write_bytes(whole[:-lost])
    again = Collection(path, ABOUT)
    assert again.left(PROMPTS[:2]) == PROMPTS[1:2]
    again.collect(PROMPTS[:2], Drawing(), three, "me")
    assert path.read_bytes() == whole


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_line_that_was_cut_off_is_decided_again(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    one = Judged(((0, 1),))
    Collection(path, ABOUT).collect(PROMPTS[:2], Drawing(), patient(2, one), "me")
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    again = Collection(path, ABOUT)
    assert again.left(PROMPTS[:2]) == PROMPTS[1:2]
    again.collect(PROMPTS[:2], Drawing(), patient(2, one), "me")
    assert path.read_bytes() == whole


def test_answers_that_were_cut_off_are_drawn_again(tmp_path: Path) -> None:
    path, draw = tmp_path / "p.jsonl", Drawing()
    Collection(path, ABOUT).collect(PROMPTS[:2], draw, patient(0), "me")
    beside = tmp_path / "p.jsonl.answers"
    beside.write_bytes(beside.read_bytes()[:-3])
    Collection(path, ABOUT).collect(PROMPTS[:2], draw, patient(2), "me")
    assert draw.asked == ["file:0", "file:1", "file:1"] and len(pairs(path)) == 4


def test_another_collection_is_not_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    Collection(path, ABOUT).collect(PROMPTS[:1], Drawing(), patient(1), "me")
    with pytest.raises(InputError, match=r"was begun with temperature = 1.0, not 0.5: give another -o"):
        Collection(path, {**ABOUT, "temperature": 0.5})
    (tmp_path / "own.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match=r"own.jsonl is there already and was not begun by this command"):
        Collection(tmp_path / "own.jsonl", ABOUT)
    path.write_text("nonsense\n")
    with pytest.raises(InputError, match=r"p.jsonl:1: this is no line of a collection"):
        Collection(path, ABOUT)


def test_a_disk_that_refuses_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PellucidError, match="could not be written"):
        Collection(tmp_path / "file" / "p.jsonl", ABOUT)
