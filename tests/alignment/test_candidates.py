"""Prompts from files, and answers to them: the same whatever else is asked, none twice."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pellucid.alignment.candidates import candidates, prompt_of, read_prompts
from pellucid.errors import InputError
from pellucid.inference.engine import Engine
from pellucid.inference.params import SamplingParams
from tests.checkpoints.tiny import CONFIGS, random_model, tiny_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

ENDS = dict.fromkeys(tiny_tokenizer().stop_ids, 3.5)  # a bias, with which the answers of a random model end
PARAMS = SamplingParams(temperature=1.0, max_tokens=24, logit_bias=ENDS)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(random_model(CONFIGS["llama"]), tiny_tokenizer(), max_sequences=8, native=False)


def test_prompts_are_read_in_every_form(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "d"}]
    lines: list[Any] = ["a", {"prompt": "b", "answer": "4"}, {"prompt": messages}, {"messages": messages[1:]}, "a"]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    counts = Counter[str]()
    found = read_prompts(tmp_path / "p.jsonl", counts)
    assert [one.messages[-1]["content"] for one in found] == ["a", "b", "d", "d"] and counts == {"there twice": 1}
    assert found[1].columns == {"answer": "4"} and len(found[2].messages) == 2
    (tmp_path / "p.txt").write_text("a\n\n  b \n")
    assert [one.messages[0]["content"] for one in read_prompts(tmp_path / "p.txt")] == ["a", "b"]
    (tmp_path / "q.txt").write_bytes(b"a\xe2\x80\xa8b\n\xff\n")
    with pytest.raises(InputError, match=r"q.txt:2: this is no UTF-8 text"):
        read_prompts(tmp_path / "q.txt")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (7, "file:3: this is no prompt; expected text"),
        ("  ", "this is no prompt"),
        ({"question": "x"}, "this is no prompt"),
        ([{"role": "user", "content": ""}], r"file:3: message 1 \(user\) is empty"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "has said the last word already"),
        ([{"role": "assistant", "content": "a"}], "by 'assistant', the first"),
    ],
)
def test_what_is_no_prompt_is_named_by_its_place(value: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        prompt_of(value, "file:3")


def test_what_is_drawn_depends_on_nothing_but_prompt_and_seed(engine: Engine) -> None:
    prompts = [prompt_of(text, text) for text in ("one", "two", "three")]
    together = candidates(engine, prompts, 3, PARAMS)
    assert all(len(one.answers) == len(set(one.answers)) for one in together)
    assert candidates(engine, prompts[1:2], 3, PARAMS) == together[1:2]
    assert candidates(engine, prompts, 3, PARAMS, seed=1) != together


def test_equal_answers_are_one(engine: Engine) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=3)
    (found,) = candidates(engine, [prompt_of("one", "x")], 3, params, whole=False)
    assert len(found.answers) == 1


def test_answers_that_were_cut_off_are_left_out_and_counted(engine: Engine) -> None:
    """D5: half an answer teaches not to end."""
    params, counts = SamplingParams(temperature=1.0, max_tokens=3, ignore_eos=True), Counter[str]()
    (found,) = candidates(engine, [prompt_of("one", "x")], 3, params, counts=counts)
    assert found.answers == () and counts == {"cut off": 3}


def test_a_prompt_that_the_context_does_not_hold_is_named(engine: Engine) -> None:
    with pytest.raises(
        InputError, match=r"file:9: the prompt has \d+ tokens and the context holds 64, the answer incl"
    ):
        candidates(engine, [prompt_of("z" * 100, "file:9")], 2, PARAMS)
