"""What a fine-tuning run reads: which tokens are learnt from, what is held out, mixed in and asked; and bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pellucid.alignment.policy import open_policy
from pellucid.alignment.recipe import SFTRecipe
from pellucid.alignment.sft import described, read_data
from pellucid.data.examples import IGNORE
from pellucid.errors import InputError
from pellucid.training.recipe import parse_recipe
from tests.alignment.chats import about_towns, chat, save_base, write_lines


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_base(tmp_path / "base")


def recipe(tmp_path: Path, records: list[Any], **changes: Any) -> SFTRecipe:
    write_lines(tmp_path / "chats.jsonl", records)
    content: dict[str, Any] = {
        "run": str(tmp_path / "run"),
        "base": str(tmp_path / "base"),
        "data": {"train": str(tmp_path / "chats.jsonl"), "context": 96, **changes.pop("data", {})},
        "train": {"steps": 2, "batch": 4},
        **changes,
    }
    return parse_recipe(content, SFTRecipe, "recipe")


def test_what_the_assistant_says_and_each_end_of_turn_is_learnt_from(base: Path, tmp_path: Path) -> None:
    two_turns = chat(("user", "on"), ("assistant", "off"), ("user", "in"), ("assistant", "out"))
    data = read_data(recipe(tmp_path, [two_turns, chat(("user", "a"), ("assistant", "b"))], data={"context": 128}))
    examples = data.conversations.read(range(len(data.conversations)))
    for tokens, targets, documents in zip(examples.tokens, examples.targets, examples.documents, strict=True):
        for document in set(documents.tolist()) - {-1}:
            learnt = targets[(documents == document) & (targets != IGNORE)].tolist()
            text = data.tokenizer.decode(tokens[documents == document].tolist())
            expected = "b<|im_end|>" if "user\na<" in text else "off<|im_end|>out<|im_end|>"
            assert data.tokenizer.decode(learnt) == expected


@pytest.mark.parametrize("pad", ["<|endoftext|>", "<|im_end|>"])
def test_padding_that_looks_like_the_end_does_no_harm(pad: str, tmp_path: Path) -> None:
    """Masks come from lengths, never from ids: the end of a turn is learnt from though it is the padding token."""
    save_base(tmp_path / "base", added=3, pad_token=pad)
    data = read_data(recipe(tmp_path, about_towns(8)))
    assert data.tokenizer.pad_id is not None
    examples = data.conversations.read(range(len(data.conversations)))
    end = data.tokenizer.special_tokens["<|im_end|>"]
    assert int((examples.targets == end).sum()) == data.conversations.shards.num_documents
    assert (examples.documents == -1).any()
    assert (examples.targets[examples.documents == -1] == IGNORE).all()


def test_the_base_keeps_its_own_template(base: Path, tmp_path: Path) -> None:
    (base / "chat_template.jinja").write_text(
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}<|endoftext|>{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    data = read_data(recipe(tmp_path, about_towns(20)))
    assert data.questions[0].text.startswith("[user] ") and data.questions[0].text.endswith("<|endoftext|>[assistant] ")
    assert data.questions[0].expected is not None and data.questions[0].expected.endswith(".")


def test_questions_come_from_what_is_held_out(base: Path, tmp_path: Path) -> None:
    records = [chat(("user", f"the {number}?"), ("assistant", f"{number}")) for number in range(40)]
    data = read_data(
        recipe(tmp_path, records, report={"prompts": ["Mine?"], "questions": 5}, data={"validation_fraction": 0.25})
    )
    assert data.conversations.shards.num_documents == 30
    assert data.validation is not None and data.validation.shards.num_documents == 10
    assert len(data.questions) == 5
    assert "Mine?" in data.questions[0].text and data.questions[0].expected is None
    held = {data.tokenizer.decode(data.validation.shards.document(number)[0].tolist()) for number in range(10)}
    for question in data.questions[1:]:
        assert any(text.startswith(f"{question.text}{question.expected}<|im_end|>") for text in held)


def test_validation_data_of_its_own(base: Path, tmp_path: Path) -> None:
    other = write_lines(tmp_path / "other.jsonl", about_towns(4, seed=1))
    data = read_data(recipe(tmp_path, about_towns(8), data={"validation": str(other)}))
    assert data.conversations.shards.num_documents == 8
    assert data.validation is not None and data.validation.shards.num_documents == 4


def test_replayed_text_is_learnt_from_whole_and_counted(base: Path, tmp_path: Path) -> None:
    text = tmp_path / "book.txt"
    text.write_text("The one in the other. " * 200)
    replay = {"data": str(text), "fraction": 0.25}
    data = read_data(recipe(tmp_path, about_towns(48), data={"replay": replay}))
    assert len(data.rows) == pytest.approx(len(data.conversations) / 0.75, abs=1)
    examples = data.rows.read(range(len(data.rows)))
    whole = [(targets != IGNORE).sum() >= 94 for targets in examples.targets]
    assert sum(whole) == len(data.rows) - len(data.conversations)


def test_too_long_is_an_error_or_counted(base: Path, tmp_path: Path) -> None:
    long = chat(("user", "the one " * 40), ("assistant", "yes"))
    records = [*about_towns(8), long]
    with pytest.raises(InputError, match=r"chats\.jsonl:9.* tokens, longer than the context of 96"):
        read_data(recipe(tmp_path, records, data={"validation_fraction": 0}))
    data = read_data(recipe(tmp_path, records, data={"too_long": "drop", "validation_fraction": 0}))
    assert data.counts["longer than the context"] == 1 and data.counts["kept: messages"] == 9
    held = {"validation": str(write_lines(tmp_path / "held.jsonl", [long, *about_towns(3)])), "too_long": "drop"}
    asked = recipe(tmp_path, about_towns(8), data=held)
    assert "data 1 longer than the context, of those held out" in described(
        asked, read_data(asked), open_policy(asked.base)[0]
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"context": 256}}, r"data\.context = 256: .*base holds at most 128 tokens"),
        ({"base": "smollm"}, r"there is no model 'smollm' \(did you mean 'smollm2'\?\)"),
        ({"data": {"train": "nothing.jsonl"}}, r"nothing\.jsonl: there is no such file"),
    ],
)
def test_what_is_asked_wrongly(changes: dict[str, Any], message: str, base: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read_data(recipe(tmp_path, about_towns(8), **changes))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (chat(("user", "a")), r"chats\.jsonl:2: .*assistant"),
        (chat(("user", "a"), ("assistant", "")), r"chats\.jsonl:2: .*empty"),
        (chat(("user", " "), ("assistant", "b")), r"chats\.jsonl:2: .*empty"),
        ({"prompt": "a", "completion": "b"}, r"chats\.jsonl:2: .*format"),
        ({"text": "a"}, r"chats\.jsonl:2: .*expected conversations"),
    ],
)
def test_bad_conversations_are_named(bad: Any, message: str, base: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read_data(recipe(tmp_path, [about_towns(1)[0], bad]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bse": "x"}, r"there is no field 'bse' \(did you mean 'base'\?\)"),
        ({"data": {"replay": {"data": "x", "fractoin": 0.1}}}, r"'data\.replay\.fractoin' \(did you mean 'fraction'"),
        ({"data": {"too_long": "keep"}}, r"data\.too_long = 'keep'"),
        ({"report": {"questions": "many"}}, r"report\.questions = 'many'"),
    ],
)
def test_bad_recipes_are_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        recipe(tmp_path, [], **changes)


ENDLESS = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def test_a_template_without_an_end_gets_the_end_of_text(base: Path, tmp_path: Path) -> None:
    (base / "chat_template.jinja").write_text(ENDLESS)
    data = read_data(recipe(tmp_path, about_towns(8)))
    examples = data.conversations.read([0])
    learnt = examples.targets[examples.targets != IGNORE].tolist()
    assert data.tokenizer.decode(learnt).endswith(".\n<|endoftext|>")


def test_a_model_that_could_never_stop_is_refused(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", added=0, bos_token=None, eos_token=None)
    (base / "chat_template.jinja").write_text(ENDLESS)
    with pytest.raises(InputError, match="no token that ends a turn"):
        read_data(recipe(tmp_path, about_towns(8)))
