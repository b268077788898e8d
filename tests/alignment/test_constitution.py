"""Constitutions: what is read, what is refused in one sentence, and how principles are drawn."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pellucid.alignment.candidates import read_prompts
from pellucid.alignment.constitution import BUNDLED, Constitution, Principle, bundled, read_constitution
from pellucid.data.tinyworld.harm import HARMS
from pellucid.errors import InputError

ONE: dict[str, Any] = {"name": "brief", "critique": "Is it long?", "revision": "Halve it.", "choice": "Which is brief?"}


def write(folder: Path, content: Any) -> str:
    path = folder / "constitution.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return str(path)


def test_a_constitution_is_read(tmp_path: Path) -> None:
    found = read_constitution(write(tmp_path, {"name": "Short", "principles": [ONE, ONE | {"name": "  plain "}]}))
    assert found == Constitution(name="Short", principles=(Principle(**ONE), Principle(**ONE | {"name": "plain"})))


def without(field: str) -> dict[str, Any]:
    return {name: value for name, value in ONE.items() if name != field}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"name": "x"}, "a constitution needs at least one principle: give `principles`"),
        ({"name": "x", "principles": []}, "a constitution needs at least one principle"),
        ("name: x\nprinciples:\n", "a constitution needs at least one principle"),
        ({"principles": [ONE]}, "the field 'name' is missing"),
        *[
            ({"name": "x", "principles": [without(field)]}, f"the field 'principles.0.{field}' is missing")
            for field in ONE
        ],
        ({"name": "x", "principles": [ONE | {"critique": "  "}]}, "principles.0.critique = "),
        ({"name": "x", "principles": [ONE | {"critik": "?"}]}, "there is no field 'principles.0.critik'"),
        ({"name": "x", "principles": [ONE | {"forbids": ["noise"]}]}, "principles.0.forbids.0 = 'noise'"),
        ({"name": "x", "principles": [ONE, ONE]}, "two principles are called 'brief'"),
        ({"name": "x", "principles": "be good"}, "principles = 'be good'"),
        ("- a\n- b\n", "a constitution is a YAML mapping with a name and a list of principles"),
        ("name: [x\n", ":2: not YAML"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_sentence(tmp_path: Path, content: Any, said: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(InputError) as caught:
        read_constitution(path)
    assert said in str(caught.value) and str(caught.value).startswith(path) and "\n" not in str(caught.value)


def test_a_name_that_nobody_knows_is_answered_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"generl: there is no such constitution \(did you mean 'general'\?\)"):
        read_constitution("generl")
    with pytest.raises(InputError, match="bundled are general, tinyworld"):
        read_constitution("rules/of/the/house.yaml")


def test_those_that_come_with_the_package_can_be_read() -> None:
    assert bundled() == ["general", "tinyworld"]
    assert len(read_constitution("general").principles) >= 5
    forbidden = [harm for principle in read_constitution("tinyworld").principles for harm in principle.forbids]
    assert sorted(forbidden) == sorted(HARMS)  # each harm by one principle


@pytest.mark.parametrize("name", ["red-team", "helpful"])
def test_bundled_prompts_can_be_read_and_none_is_there_twice(name: str) -> None:
    counts = Counter[str]()
    assert len(read_prompts(BUNDLED / f"{name}.jsonl", counts)) >= 20 and not counts


@given(count=st.integers(1, 6), rounds=st.integers(1, 20), seed=st.integers())
def test_no_principle_comes_again_before_all_have_come(count: int, rounds: int, seed: int) -> None:
    constitution = Constitution(name="x", principles=tuple(Principle(**ONE | {"name": str(n)}) for n in range(count)))
    drawn = [principle.name for principle in constitution.drawn(rounds, seed)]
    assert len(drawn) == rounds and drawn == [principle.name for principle in constitution.drawn(rounds, seed)]
    for start in range(0, rounds, count):
        part = drawn[start : start + count]
        assert len(set(part)) == len(part)


def test_examples_draw_different_principles() -> None:
    general = read_constitution("general")
    first = Counter(next(general.drawn(1, 0, number)).name for number in range(600))
    assert len(first) == 6 and min(first.values()) > 60  # 100 expected, standard deviation 9
