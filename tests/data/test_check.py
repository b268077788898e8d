"""Checking files: all that is in them and all that is wrong, in one go, with the tokens that training would see."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.data.check import Lengths, check
from pellucid.data.records import Record, digest
from pellucid.data.sources import File
from pellucid.tokenizer.tokenizer import Tokenizer
from pellucid.tokenizer.train import train_bpe

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trained = train_bpe(["who is the baker of the town? the baker is ada. "], 270, special_tokens=specials)
    plain = trained.tokenizer()
    return Tokenizer(plain.definition, {**plain.config, "eos_token": "<|im_end|>"}, {"default": TEMPLATE})


def conversation(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def write(path: Path, rows: list[Any]) -> File:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return File(path.name, path)


def test_all_problems_are_found(tmp_path: Path) -> None:
    good = [conversation(f"q{n}", "a") for n in range(5)]
    bad = [conversation("q", "")] * 5 + [{"messages": []}]
    found = check([write(tmp_path / "rows.jsonl", [*good, *bad])])
    assert found.formats == {"messages": 5} and found.roles == {"user": 5, "assistant": 5} and found.characters == 15
    assert {reason: one.count for reason, one in found.problems.items()} == {"empty turn": 5, "malformed messages": 1}
    examples = found.problems["empty turn"].examples
    assert [example.split(": ")[0] for example in examples] == ["rows.jsonl:6", "rows.jsonl:7", "rows.jsonl:8"]
    assert not found.duplicates.count and not found.lengths.tokens


def test_every_file_is_read_whatever_is_wrong_with_another(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "binary.txt").write_bytes(b"\0")
    files = [File(name, tmp_path / name) for name in ("empty.jsonl", "binary.txt")]
    found = check([*files, write(tmp_path / "rows.jsonl", [conversation("q", "a")])])
    assert found.files == 3 and found.records == 1 and set(found.problems) == {"empty file", "binary file"}


def test_duplicates_are_named_with_the_first(tmp_path: Path) -> None:
    one, two = conversation("q", "a"), conversation("q", "b")
    turned = {"messages": [dict(reversed(message.items())) for message in one["messages"]]}  # the keys in another order
    first, second = write(tmp_path / "1.jsonl", [one, two]), write(tmp_path / "2.jsonl", [two, turned, {"x": 1}])
    found = check([first, second])
    assert found.duplicates.count == 2
    assert found.duplicates.examples == ["2.jsonl:1 equals 1.jsonl:2", "2.jsonl:2 equals 1.jsonl:1"]


def test_tokens_are_those_of_training(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = [conversation("who is ada?", "the baker."), conversation("who?", "ada." * 40)]
    found = check([write(tmp_path / "rows.jsonl", rows)], tokenizer=tokenizer, context=60)
    chats = [tokenizer.apply_chat_template(row["messages"]) for row in rows]
    answers = [tokenizer.encode(row["messages"][1]["content"]) for row in rows]
    lengths = found.lengths
    assert list(lengths.tokens) == [len(chat.ids) for chat in chats]
    assert lengths.supervised == sum(len(answer) + 1 for answer in answers)  # and the end of the turn
    assert lengths.longest == "rows.jsonl:2" and lengths.longest_tokens == len(chats[1].ids) and lengths.over(60) == 1
    (problem,) = found.problems.values()
    assert problem.examples[0].startswith(f"rows.jsonl:2: {len(chats[1].ids)} tokens, longer than the context of 60;")


def test_texts_of_any_length_are_no_problem(tmp_path: Path, tokenizer: Tokenizer) -> None:
    found = check([write(tmp_path / "rows.jsonl", [{"text": "the baker " * 50}])], tokenizer=tokenizer, context=10)
    assert not found.problems and found.lengths.tokens[0] == len(tokenizer.encode("the baker " * 50)) + 1


def test_what_the_chat_template_refuses(tmp_path: Path, tokenizer: Tokenizer) -> None:
    strict = Tokenizer(tokenizer.definition, tokenizer.config, {"default": "{{ raise_exception('no system') }}"})
    found = check([write(tmp_path / "rows.jsonl", [conversation("q", "a")])], tokenizer=strict)
    assert found.problems["refused by the chat template"].examples[0].startswith("rows.jsonl:1: ")


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=50))
def test_percentiles(numbers: list[int]) -> None:
    lengths = Lengths()
    for place, number in enumerate(numbers):
        lengths.add(number, 0, str(place))
    for percent, value in lengths.percentiles().items():
        within = sum(number <= value for number in numbers)
        below = sum(number < value for number in numbers)
        assert value in numbers and below * 100 < percent * len(numbers) <= within * 100
    assert lengths.longest_tokens == max(numbers) == numbers[int(lengths.longest)]


def test_lone_surrogates_have_a_digest() -> None:
    assert digest(Record("", "text", "text", "\ud800")) != digest(Record("", "text", "text", "\ud801"))
