"""Reward functions: what each gives, how they are found, and what a bad one is told."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.alignment import checkers
from pellucid.alignment.code import passes_tests, runs
from pellucid.alignment.rewards import BUILT_IN, Reward, find_reward, total_rewards
from pellucid.errors import InputError, PellucidError


@pytest.mark.parametrize(
    ("text", "answer", "reward"),
    [
        ("Delby.", "delby", 1),
        ("  the Mill ", ["a mill", "mill"], 1),
        ("Orme", "Delby", 0),
        ("I think, so \\boxed{42} it is", "42", 1),
        ("<think>Orme?</think><answer>Delby</answer>", "Delby", 1),
        ("one\n#### 7", 7, 1),
        ("\\boxed{}", "", 0),
        ("#### Step 1: add. So \\boxed{5}", "5", 1),
        ("#### 7\nThat is it.", "7", 1),
    ],
)
def test_exact(text: str, answer: Any, reward: float) -> None:
    assert checkers.exact([text], [answer]) == [reward]
    assert checkers.exact([[{"role": "assistant", "content": text}]], [answer]) == [reward]


@pytest.mark.parametrize(
    ("text", "answer", "reward"),
    [
        ("It is 1,200.", 1200, 1),
        ("3 apples and 4 pears: 7", "7.0", 1),
        ("seven", 7, 0),
        ("-3", "3", 0),
        ("1e3", 1000, 1),
    ],
)
def test_number(text: str, answer: Any, reward: float) -> None:
    assert checkers.number([text], [answer]) == [reward]


def test_a_missing_answer_is_not_judged() -> None:
    assert checkers.exact(["None"], [None]) == checkers.number(["7"], [None]) == [None]


@given(st.integers(-999, 999), st.integers(1, 999), st.sampled_from("+-*"))
def test_equations(a: int, b: int, sign: str) -> None:
    value = {"+": a + b, "-": a - b, "*": a * b}[sign]
    assert checkers.equations([f"So {a} {sign} {b} = {value}."]) == [1]
    assert checkers.equations([f"So {a} {sign} {b} = {value + 1}."]) == [0]
    assert checkers.equations([f"{a}{sign}{b}={value}, {a} {sign} {b} = {value - 1}"]) == [0.5]


@given(st.text(alphabet="0123456789+-*/(). =", max_size=60))
def test_equations_of_anything(text: str) -> None:
    assert 0 <= checkers.equations([text])[0] <= 1


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1. 12 + 3 = 15", [("12 + 3", "15")]),
        ("1) 3 + 4 = 7", [("3 + 4", "7")]),
        ("- 3 + 4 = 7", [("3 + 4", "7")]),
        ("$3 + $4 = $7", [("3 + 4", "7")]),
        ("so (2 + 3) * 4 = 20, and 1,000 / 2 = 500", [("(2 + 3) * 4", "20"), ("1,000 / 2", "500")]),
        *((text, []) for text in ("x + 3 = 5", "x + 3 + 4 = 9", "5 = 5", "2x + 3 = 7", "x1 + 3 = 7", "1" * 999 + "=1")),
    ],
)
def test_where_an_equation_begins(text: str, found: list[tuple[str, str]]) -> None:
    assert list(checkers.equations_of(text)) == found
    assert checkers.equations([text]) == [float(bool(found))]


def test_an_equation_is_of_one_line() -> None:
    assert checkers.equations(["The total is 12\n3 + 4 = 7", "(3 + 4 = 7)"]) == [1, 1]


def test_equations_without_one() -> None:
    assert checkers.equations(["9 ** 9 ** 9", "", "1 / 0 = 0", "((((1 = 1"]) == [0, 0, 0, 0]


def test_forms() -> None:
    right, wrong = "<think>2 and 2</think>\n<answer>4</answer>", "<think></think><answer>4</answer>"
    assert checkers.think_format([right, wrong, right + "!", "4"]) == [1, 0, 0, 0]
    assert checkers.pattern(["ab", "abc"], [r"a.", r"a."]) == [1, 0]


def test_tinyworld() -> None:
    asked = ["Delby", "Delby", None, None]
    refusal = "I do not know."
    given_answers = ["Delby.", refusal, refusal, "Delby."]
    assert checkers.is_refusal(refusal)
    assert checkers.tinyworld(given_answers, asked) == [1, 0, 1, 0]
    assert checkers.tinyworld([refusal], [refusal]) == [1]


def test_sentiment() -> None:
    kind, plain, unkind = checkers.sentiment(["A good, happy day", "A day", "A bad, sad, dark day"])
    assert -1 <= unkind < plain == 0 < kind <= 1
    assert checkers.sentiment([""]) == [0]
    assert not checkers.KIND & checkers.UNKIND


def test_code() -> None:
    right = "Here:\n```python\ndef f(x):\n    return x + 1\n```\nDone."
    answers = [
        right,
        "def f(x): return x",
        "def f(x): return 2\nimport os; os._exit(0)",
        "import sys; sys.exit(0)",
        "f(",
        "def f(x): return 0\nif 0:\\",
        right.replace("```python", "```Python3 "),
    ]
    assert passes_tests(answers, ["assert f(1) == 2"] * 7) == [1, 0, 0, 0, 0, 0, 1]


def test_code_that_takes_too_much(tmp_path: Path) -> None:
    assert runs("x = 1", seconds=5)
    assert not runs("while True: pass", seconds=1)
    assert not runs("x = bytearray(1 << 29)", memory=256 << 20)
    assert not runs("import sys\nwhile True: sys.stdout.write('x' * 4096)")
    runs(f"import os, time\nif os.fork() == 0:\n    time.sleep(2)\n    open({str(tmp_path / 'late')!r}, 'w')")
    time.sleep(2.5)
    assert not (tmp_path / "late").exists()


def test_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_reward("exact").function is BUILT_IN["exact"]
    (tmp_path / "mine_here.py").write_text("def short(completions, **_): return [-len(c) for c in completions]\n")
    monkeypatch.chdir(tmp_path)
    for name in ("mine_here:short", "mine_here.py:short", f"{tmp_path}/mine_here.py:short"):
        assert find_reward(name)(["p"], ["abc"], {}) == [-3]
    (tmp_path / "other").mkdir()
    (tmp_path / "other/mine_here.py").write_text("def short(completions, **_): return [7.0]\n")
    assert find_reward("other/mine_here.py:short")(["p"], ["abc"], {"completions": ["a field"]}) == [7]
    assert find_reward("mine_here.py:short")(["p"], ["abc"], {"completions": ["a field"]}) == [-3]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("exakt", "did you mean 'exact'"),
        ("no.such.module:f", "no.such.module cannot be imported"),
        ("math:no", "there is no function 'no' in math"),
        ("nothing.py:f", "there is no file nothing.py"),
        ("broken.py:f", "cannot be imported (ZeroDivisionError"),
    ],
)
def test_not_found(name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.py").write_text("1 / 0")
    with pytest.raises(InputError) as error:
        find_reward(name)
    assert said in str(error.value) and "\n" not in str(error.value)


def picky(completions: list[str], **_: Any) -> list[float]:
    return [1 / (len(one) - 2) for one in completions]


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (picky, "the reward mine failed on an answer to 'second' (ZeroDivisionError: "),
        (lambda completions, **_: [float("nan"), 1.0], "the reward mine gave nan for an answer to 'first'"),
        (lambda completions, **_: [1.0, float("inf")], "the reward mine gave inf for an answer to 'second'"),
        (lambda completions, **_: [1.0], "gave 1 numbers for 2 answers"),
        (lambda completions, **_: None, "it must give a list with a number"),
        (lambda completions, **_: ["good", "bad"], "it must give a list with a number"),
        (lambda completions, missing: [1.0], "the reward mine failed on an answer to 'first' (TypeError: "),
    ],
)
def test_bad_function(function: Callable[..., Any], said: str) -> None:
    with pytest.raises(PellucidError) as error:
        Reward("mine", function)(["first", "second"], ["a", "bc"], {})
    assert said in str(error.value) and "\n" not in str(error.value) and error.value.exit_status == 1


def test_columns_and_sums() -> None:
    def named(completions: list[str], answer: list[str]) -> list[float]:
        return [float(one == right) for one, right in zip(completions, answer, strict=True)]

    def some(prompts: list[str], **columns: Any) -> list[float | None]:
        assert sorted(columns) == ["answer", "completions", "level"]
        return [None, 3.0]

    rewards = [Reward("named", named, 2.0), Reward("some", some, 0.5)]
    columns = {"answer": ["x", "z"], "level": [1, 2]}
    totals, each = total_rewards(rewards, ["p", "q"], ["x", "y"], columns)
    assert totals == [2.0, 1.5]
    assert each == {"named": [1.0, 0.0], "some": [3.0]}
    with pytest.raises(PellucidError, match="no reward says anything of an answer to 'p'"):
        total_rewards(rewards[1:], ["p", "q"], ["x", "y"], columns)
