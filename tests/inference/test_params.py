"""What may be asked, and the sentence for what may not."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from pellucid.errors import InputError
from pellucid.inference.params import MAX_BAD_WORDS, MAX_BIASES, MAX_STOPS, Constraint, SamplingParams


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"temperature": -1}, "temperature = -1"),
        ({"temperature": math.nan}, "temperature = nan"),
        ({"temperature": math.inf}, "temperature = inf"),
        ({"temperature": "warm"}, "temperature = 'warm'"),
        ({"top_p": 0}, "top_p = 0"),
        ({"top_p": 1.01}, "top_p = 1.01"),
        ({"top_k": -1}, "top_k = -1"),
        ({"min_p": 2}, "min_p = 2"),
        ({"typical_p": 0}, "typical_p = 0"),
        ({"repetition_penalty": 0}, "repetition_penalty = 0"),
        ({"max_tokens": 0}, "max_tokens = 0"),
        ({"max_tokens": -1}, "max_tokens = -1"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens = 5 is more than max_tokens = 4"),
        ({"seed": 2**70}, "seed"),
        ({"seed": -1}, "seed = -1"),
        ({"logprobs": -1}, "logprobs = -1"),
        ({"prompt_logprobs": -1}, "prompt_logprobs = -1"),
        ({"logit_bias": {1: 101}}, "logit_bias.1 = 101"),
        ({"logit_bias": {-1: 1}}, "logit_bias.-1"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x"),
        ({"logit_bias": dict.fromkeys(range(MAX_BIASES + 1), 1)}, f"at most {MAX_BIASES} are taken"),
        ({"n": 0}, "n = 0"),
        ({"n": 129}, "n = 129"),
        ({"n": 3, "best_of": 2}, "best_of = 2 is less than n = 3"),
        ({"stop": ["a", ""]}, "empty stop string"),
        ({"stop": [str(number) for number in range(MAX_STOPS + 1)]}, f"at most {MAX_STOPS} are taken"),
        ({"stop": ["a" * 70_000]}, "70000 letters"),
        ({"bad_words": ""}, "empty bad word"),
        ({"bad_words": ["a"] * (MAX_BAD_WORDS + 1)}, f"at most {MAX_BAD_WORDS} are taken"),
        ({"constraint": {}}, "this one has nothing"),
        ({"constraint": {"regex": "a", "choice": ["a"]}}, "this one has regex and choice"),
        ({"constraint": {"choice": []}}, "at least one text"),
        ({"constraint": {"choice": ["a", ""]}}, "none of them empty"),
        ({"constraint": {"regexp": "a"}}, "constraint.regexp"),
        ({"constraint": {"regex": "a"}, "min_tokens": 1}, "min_tokens and a constraint"),
        ({"constraint": {"regex": "a"}, "bad_words": "b"}, "bad_words and a constraint"),
        ({"constraint": {"regex": "a"}, "ignore_eos": True}, "ignore_eos and a constraint"),
        ({"temprature": 1}, "did you mean 'temperature'"),
    ],
)
def test_bad_values_are_named(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)) as error:
        SamplingParams(**fields)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_what_the_vocabulary_lacks_is_named() -> None:
    SamplingParams(logprobs=10, logit_bias={9: 1}).check_vocabulary(10)
    with pytest.raises(InputError, match="logprobs = 1000000000: the vocabulary has 10 tokens"):
        SamplingParams(logprobs=10**9).check_vocabulary(10)
    with pytest.raises(InputError, match="token id 10, and the model's vocabulary ends at 9"):
        SamplingParams(logit_bias={"10": 1}).check_vocabulary(10)


def test_extreme_values_are_taken() -> None:
    params = SamplingParams(seed=2**63 - 1, temperature=1e-6, stop=[str(number) for number in range(1000)])
    assert params.with_({"temperature": 1e6}).temperature == 1e6
    assert SamplingParams(max_tokens=0, prompt_logprobs=0).max_tokens == 0


def test_one_stop_string_is_a_list_of_one() -> None:
    assert SamplingParams(stop="\n").stop == ("\n",)
    assert SamplingParams(bad_words="no").bad_words == ("no",)
    assert SamplingParams(stop=["a", "b"]).with_({"top_k": 3}) == SamplingParams(stop=("a", "b"), top_k=3)


@pytest.mark.parametrize("constraint", [{"json_schema": False}, {"json_object": True}, {"choice": ["a", "b"]}])
def test_a_constraint_outlives_a_change(constraint: dict[str, Any]) -> None:
    params = SamplingParams(constraint=constraint)
    assert params.seeded().constraint == params.constraint == Constraint(**constraint)


def test_stop_tokens_have_a_limit() -> None:
    assert len(SamplingParams(stop_token_ids=range(1024)).stop_token_ids) == 1024
    with pytest.raises(InputError, match="there are 1025 stop tokens"):
        SamplingParams(stop_token_ids=range(1025))
