"""Whatever the logits say, a constrained answer meets its constraint or says that it was cut."""

from __future__ import annotations

import builtins
import gc
import json
import re
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.errors import InputError
from pellucid.inference.constraint import MAX_DIGITS, Matcher
from pellucid.inference.generate import generate
from pellucid.inference.params import Constraint, SamplingParams
from pellucid.inference.rows import Row, new_row
from pellucid.inference.sampling import NoToken, Sampler
from tests.inference.tiny import ByteTokenizer, tiny_model
from tests.inference.words import TOKENIZER, WordTokenizer

pytest.importorskip("llguidance")

SCHEMA_WORDS = (
    *("type", "properties", "required", "items", "enum", "const", "minimum", "maximum", "pattern", "format", "anyOf"),
    *("allOf", "oneOf", "not", "$ref", "minLength", "maxLength", "additionalProperties", "minItems", "multipleOf"),
)
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer"},
        "tags": {"enum": ["a", "b"]},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


def row(constraint: dict[str, Any], tokenizer: Any = TOKENIZER, **fields: Any) -> Row:
    params = SamplingParams(constraint=constraint, **fields)
    ends = tokenizer.stop_ids
    return new_row(params, [], tokenizer.vocab_size, stop_ids=ends, end_ids=ends, tokenizer=tokenizer)


def answer(one: Row, weights: torch.Tensor, most: int = 400) -> tuple[str, bool]:
    """What is drawn from fixed logits, and whether it came to its end."""
    sampler, tokens = Sampler(TOKENIZER.vocab_size), []
    for _ in range(most):
        token = int(sampler(weights[None], [one]))
        if token == TOKENIZER.end:
            return TOKENIZER.decode(tokens), True
        tokens.append(token)
        if one.finished:
            return TOKENIZER.decode(tokens), True
    return TOKENIZER.decode(tokens), False


def random_weights(seed: int) -> torch.Tensor:
    return 2 * torch.randn(TOKENIZER.vocab_size, generator=torch.Generator().manual_seed(seed))


@given(st.integers(0, 10_000))
@settings(max_examples=50)
def test_json_by_a_schema_parses_and_meets_it(seed: int) -> None:
    text, ended = answer(row({"json_schema": PERSON}, seed=seed), random_weights(seed))
    assert ended
    value = json.loads(text)
    assert set(value) - {"tags"} == {"name", "age"} and value.get("tags", "a") in ("a", "b")
    assert isinstance(value["age"], int) and isinstance(value["name"], str) and len(value["name"]) <= 8


@given(st.integers(0, 10_000))
@settings(max_examples=30)
def test_any_json_object_parses_when_it_ends(seed: int) -> None:
    text, ended = answer(row({"json_object": True}, seed=seed, temperature=0.7), random_weights(seed))
    if ended:
        assert isinstance(json.loads(text), dict)


@pytest.mark.parametrize("pattern", [r"[a-c]{2,5}\.[0-9]{1,9}", "(true|false)", "É?a{1,4}"])
@given(seed=st.integers(0, 10_000))
@settings(max_examples=20)
def test_a_regex_matches_from_end_to_end(pattern: str, seed: int) -> None:
    text, ended = answer(row({"regex": pattern}, seed=seed), random_weights(seed))
    assert ended and re.fullmatch(pattern, text)


@given(st.lists(st.text('abc"\\\n{é', min_size=1, max_size=5), min_size=1, max_size=5), st.integers(0, 1000))
@settings(max_examples=50)
def test_a_choice_is_one_of_its_texts(choice: list[str], seed: int) -> None:
    choice = [text.replace("é", "É") for text in choice]  # which this vocabulary can write
    text, ended = answer(row({"choice": choice}, seed=seed), random_weights(seed))
    assert ended and text in choice


def test_every_choice_can_be_drawn() -> None:
    drawn = {
        answer(row({"choice": ["a", "ab", "cab"]}, seed=seed), torch.zeros(TOKENIZER.vocab_size))[0]
        for seed in range(60)
    }
    assert drawn == {"a", "ab", "cab"}


def test_a_grammar_is_followed() -> None:
    grammar = 'start: "a" start "b" | "c"'
    for seed in range(20):
        text, ended = answer(row({"grammar": grammar}, seed=seed), random_weights(seed))
        assert not ended or (re.fullmatch(r"(a*)c(b*)", text) and text.count("a") == text.count("b"))


@pytest.mark.parametrize("liked", [" ", "\n", "  ", "0", "3", "00", "-", "123"])
def test_a_model_that_only_wants_white_space_or_digits_ends_nevertheless(liked: str) -> None:
    """The constraint's own limits end it, not max_tokens."""
    weights = torch.zeros(TOKENIZER.vocab_size)
    weights[TOKENIZER.tokens.index(liked.encode())] = 50
    schema = {
        "type": "object",
        "properties": {"a": {"type": "number"}, "b": {"type": "integer"}},
        "required": ["a", "b"],
    }
    schema["additionalProperties"] = False
    text, ended = answer(row({"json_schema": schema}, temperature=0), weights)
    assert ended
    assert max(map(len, re.findall("[0-9]+", text))) < MAX_DIGITS + 3
    assert {type(value) for value in json.loads(text).values()} <= {int, float}


def test_digits_in_a_string_are_not_counted_and_numbers_that_must_be_long_may_be() -> None:
    weights = torch.zeros(TOKENIZER.vocab_size)
    weights[TOKENIZER.tokens.index(b"7")] = 50
    long = {"type": "string", "minLength": 60, "maxLength": 60}
    text, ended = answer(row({"json_schema": long}, temperature=0), weights)
    assert ended and json.loads(text) == "7" * 60
    text, ended = answer(row({"json_schema": {"const": int("7" * 40)}}, temperature=0), weights)
    assert not ended or len(text) == 40


@pytest.mark.parametrize(
    ("constraint", "said"),
    [
        ({"json_schema": False}, "json_schema"),
        ({"json_schema": {"type": "integer", "minimum": 5, "maximum": 3}}, "json_schema"),
        ({"json_schema": {"type": "strin"}}, "json_schema"),
        ({"json_schema": {"type": "string", "pattern": "("}}, "json_schema"),
        ({"json_schema": {"$ref": "http://example.com/schema.json"}}, "json_schema"),
        ({"regex": "("}, "regex"),
        ({"json_schema": {"type": "object", "patternProperties": {"(a|b": {}}}}, "json_schema"),
        ({"regex": r"[^\s\S]"}, "regex"),
        ({"grammar": "start: unknown"}, "grammar"),
        ({"grammar": ""}, "grammar"),
        ({"grammar": "start: start"}, "grammar"),
    ],
)
def test_what_cannot_be_met_is_refused_before_the_first_token(constraint: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=f"^constraint: .*{said}") as error:
        row(constraint)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize(
    "constraint",
    [{"regex": "\ud800"}, {"grammar": 'start: "\ud800"'}, {"choice": ["\ud800"]}, {"json_schema": {"const": "\ud800"}}],
)
def test_half_a_surrogate_is_refused(constraint: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        row(constraint)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(SCHEMA_WORDS) | st.text(max_size=3), inner)
    ),
    max_leaves=10,
)


@given(
    st.builds(lambda text: {"regex": text}, st.text() | st.text(r"ab(|)[]{}*+?\\^$.1,-", max_size=20))
    | st.builds(lambda text: {"grammar": text}, st.text() | st.text('start: |"ab/%{}[]()\n<>TX', max_size=40))
    | st.builds(lambda value: {"json_schema": value}, st.dictionaries(st.sampled_from(SCHEMA_WORDS), json_values))
)
@settings(max_examples=300)
def test_whatever_is_asked_gives_an_answer_or_a_sentence(constraint: dict[str, Any]) -> None:
    try:
        answer(row(constraint, seed=1), random_weights(1), most=20)
    except InputError as error:
        assert "\n" not in str(error)
    except NoToken:
        pass


def test_a_schema_of_endless_depth_is_refused() -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(5000):
        schema = {"type": "array", "items": schema}
    with pytest.raises(InputError):
        row({"json_schema": schema})


def test_a_letter_that_no_token_writes_is_a_dead_end_that_is_said() -> None:
    with pytest.raises(InputError, match="no output can meet the choice"):
        row({"choice": ["€"]})
    weights = torch.zeros(TOKENIZER.vocab_size)
    one = row({"regex": "[ab]{3}€"}, temperature=0)
    with pytest.raises(NoToken, match="leaves no token"):
        answer(one, weights)


def test_a_constraint_that_costs_too_much_on_the_way_is_said() -> None:
    with pytest.raises(NoToken, match="leaves no token"):
        answer(row({"regex": "(a{1000}){1000}{1000}"}, temperature=0), torch.zeros(TOKENIZER.vocab_size))


def test_rows_with_and_without_constraints_mix() -> None:
    weights = torch.stack([random_weights(seed) for seed in range(3)])
    alone = [answer(row({"regex": "[a-c]{4}"}, seed=5), weights[1])[0]]
    sampler, rows = Sampler(TOKENIZER.vocab_size), []
    rows = [
        new_row(SamplingParams(seed=1), [], TOKENIZER.vocab_size),
        row({"regex": "[a-c]{4}"}, seed=5),
        row({"json_object": True}, seed=2),
    ]
    tokens: list[int] = []
    while not rows[1].finished:
        tokens.append(sampler(weights, rows).tolist()[1])
    assert TOKENIZER.decode(tokens) == alone[0]


def test_the_reference_generator_ends_a_constrained_answer_and_says_when_it_was_cut() -> None:
    model, tokenizer = tiny_model(), ByteTokenizer()
    params = SamplingParams(constraint={"choice": ["yes", "no"]}, seed=1)
    whole = generate(model, tokenizer, ["a"], params)[0]
    assert whole.text in ("yes", "no")
    assert (whole.finish_reason, whole.finish_detail) == ("stop", "constraint")
    cut = generate(model, tokenizer, ["a"], params.with_({"max_tokens": 1}))[0]
    assert (cut.finish_reason, cut.finish_detail) == ("length", "max_tokens")
    with pytest.raises(InputError, match="regex"):
        generate(model, tokenizer, ["a"], params.with_({"constraint": {"regex": "("}}))


def test_a_model_without_an_end_is_refused() -> None:
    with pytest.raises(InputError, match="end-of-text token"):
        Matcher(Constraint(regex="a"), TOKENIZER, [])


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name.startswith("llguidance"):
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"pip install 'pellucid\[structured\]'"):
        row({"regex": "a"}, WordTokenizer())


class SpacedTokenizer(WordTokenizer):
    """Puts a space before every text, as SentencePiece does."""

    def encode(self, text: str, *, allow_special: bool = False, add_bos: bool = False) -> list[int]:
        return super().encode(f" {text}")


def test_text_that_is_forced_is_spelt_as_it_is_whatever_the_tokenizer_adds() -> None:
    text, ended = answer(row({"regex": "(ab|ca)true,name"}, SpacedTokenizer(), seed=1), random_weights(1))
    assert ended and text in ("abtrue,name", "catrue,name")


def test_thousands_of_choices() -> None:
    choice = [f"a{number}" for number in range(4000)]
    text, ended = answer(row({"choice": choice}, seed=1), random_weights(1))
    assert ended and text in choice


def test_the_tokenizer_is_handed_over_once_and_let_go() -> None:
    tokenizer = WordTokenizer()
    first, second = row({"regex": "a"}, tokenizer), row({"regex": "b"}, tokenizer)
    assert first.matcher is not None and second.matcher is not None
    assert first.matcher._vocabulary is second.matcher._vocabulary
    assert not np.array_equal(first.matcher.allowed(), second.matcher.allowed())
    gone = weakref.ref(tokenizer)
    del tokenizer, first, second
    gc.collect()
    assert gone() is None
