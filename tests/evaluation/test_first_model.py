"""What a demo reads: the world's texts and its questions, a text of one's own in passages, and what cannot be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.data.texts import read
from pellucid.errors import InputError
from pellucid.evaluation.first_model import (
    CONVERSATIONS,
    HELD_OUT,
    PASSAGE,
    SHORTEST,
    TEXT,
    TRAIN,
    WORLD,
    Demo,
    passages_in,
    passages_of,
    pretrain_recipe,
    sft_recipe,
    size_for,
    to_go_on,
)

SMALL = replace(WORLD, people=12, tellings=4)


def lines(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_no_conversation_is_about_people_who_are_held_out(tmp_path: Path) -> None:
    demo = Demo(tmp_path / "demo", 0, SMALL)
    demo.begin()
    demo.write_text()
    asked = "\n".join(map(json.dumps, lines(tmp_path / "demo" / TEXT / CONVERSATIONS)))
    told = "\n".join(map(json.dumps, lines(tmp_path / "demo" / TEXT / TRAIN)))
    for person in demo.world.people:
        assert person.name in told
        assert not (person.held_out and f"“{person.name}" in asked)
        if person.held_out:
            questions = [line for line in asked.split("\n") if f"{person.name}" in line.split('"assistant"')[0]]
            assert questions == []


def test_what_is_measured_on_is_told_in_other_words(tmp_path: Path) -> None:
    demo = Demo(tmp_path / "demo", 0, SMALL)
    demo.begin()
    demo.write_text()
    train = {line["text"] for line in lines(tmp_path / "demo" / TEXT / TRAIN)}
    held_out = {line["text"] for line in lines(tmp_path / "demo" / TEXT / HELD_OUT)}
    long = {text for text in held_out if len(str(text)) > 200}
    assert long
    assert not long & train


def test_another_seed_is_another_world(tmp_path: Path) -> None:
    names = [{person.name for person in Demo(tmp_path, seed, SMALL).world.people} for seed in (0, 1)]
    assert len(names[0] & names[1]) <= 2


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=4_000), max_size=5))
def test_passages_lose_nothing_but_line_ends(texts: list[str]) -> None:
    passages = list(passages_of(texts))
    assert "".join("".join(passages).split()) == "".join("".join(texts).split())
    assert all(len(passage) <= 4 * PASSAGE for passage in passages)


def test_passages_keep_their_order() -> None:
    text = "First.\n\n" + "and so on " * 1_000 + "\n\nLast."
    assert "".join("".join(passages_of([text])).split()) == "".join(text.split())


def test_a_conversation_made_of_a_passage_is_the_passage_up_to_the_end_of_a_sentence() -> None:
    passage = "One two three four five six seven eight nine ten eleven twelve. " + "Here it goes on, and on. " * 30
    talk = to_go_on(passage)
    assert talk is not None
    asked, said = (message["content"] for message in talk["messages"])
    assert passage.startswith(f"{asked} {said}")
    assert asked.endswith(("twelve.", "eleven"))
    assert said.endswith(".")
    assert to_go_on("Nothing more.") is None


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=600))
def test_any_passage_can_be_gone_on_with_and_fits(passage: str) -> None:
    talk = to_go_on(passage)
    if talk is not None:
        asked, said = (message["content"] for message in talk["messages"])
        assert asked and said
        assert len(asked.encode()) + len(said.encode()) <= 240
        assert "".join(passage.split()).startswith("".join((asked + said).split()))


def test_a_short_text_is_refused_with_both_numbers(tmp_path: Path) -> None:
    book = tmp_path / "book.txt"
    book.write_text("Too short. " * 50, encoding="utf-8")
    with pytest.raises(InputError, match=rf"book.txt: the text has 5\d\d characters .* from {SHORTEST:,} at least"):
        passages_in(str(book))
    book.write_text(f"{'The same thing again. ' * 30}\n\n" * 100, encoding="utf-8")
    with pytest.raises(InputError, match=r"the text has 6\d\d characters without repetitions"):
        passages_in(str(book))


@pytest.mark.parametrize("content", [b"", b"\x00\x01\x02", b"\xff\xfe\x00"])
def test_what_is_no_text_is_refused(tmp_path: Path, content: bytes) -> None:
    book = tmp_path / "book.txt"
    book.write_bytes(content)
    with pytest.raises(InputError, match=r"book\.txt"):
        passages_in(str(book))


@pytest.mark.parametrize("paragraph", [40, 10_000])
def test_the_shortest_text_is_enough_for_training_and_measuring(tmp_path: Path, paragraph: int) -> None:
    words = (read("state-of-the-union")[: SHORTEST + 2_000]).split()
    breaks = ("\n\n" if number % paragraph == paragraph - 1 else " " for number in range(len(words)))
    (tmp_path / "book.txt").write_text("".join(map("".join, zip(words, breaks, strict=False))), encoding="utf-8")
    demo = Demo(tmp_path / "demo", 0, size_for(SHORTEST), str(tmp_path / "book.txt"))
    demo.write_text()
    counts = [
        sum(len(str(line["text"])) for line in lines(tmp_path / "demo" / TEXT / name)) for name in (TRAIN, HELD_OUT)
    ]
    assert counts[0] > SHORTEST / 2
    assert counts[1] > 4 * demo.size.context
    assert len(lines(tmp_path / "demo" / TEXT / CONVERSATIONS)) > 6


@pytest.mark.parametrize("characters", [SHORTEST, 99_999, 100_000, 499_999, 500_000, 10**9])
def test_every_text_gets_a_recipe_that_holds(tmp_path: Path, characters: int) -> None:
    size = size_for(characters)
    (tmp_path / "book.txt").write_text(" ".join(f"To be or not to be {n}." for n in range(2_000)), encoding="utf-8")
    demo = Demo(tmp_path / "demo", 0, size, str(tmp_path / "book.txt"))
    demo.write_text()
    for made in (pretrain_recipe(demo), sft_recipe(demo)):
        assert made.train.steps is not None
        assert made.optim.warmup < made.train.steps
    assert size.steps * size.batch * size.context <= 3_000_000


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").write_text("years of work")
    with pytest.raises(InputError, match="no demo: choose another folder with --run"):
        Demo(tmp_path, 0, SMALL).begin()
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.doc"]


def test_a_folder_of_another_demo_says_what_differs(tmp_path: Path) -> None:
    Demo(tmp_path / "demo", 0, SMALL).begin()
    Demo(tmp_path / "demo", 0, SMALL).begin()
    with pytest.raises(InputError, match=r"another seed \(0 -> 1\)"):
        Demo(tmp_path / "demo", 1, SMALL).begin()
    with pytest.raises(InputError, match=r"another text \(None -> book.txt\)"):
        Demo(tmp_path / "demo", 0, SMALL, "book.txt").begin()
