"""Reward models at work: packed equals alone, the place where the score is read, and what cannot be scored."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.alignment.reward_model import RewardModel, said_ids
from pellucid.checkpoints.save import save
from pellucid.errors import InputError
from pellucid.models.classifier import Classifier
from pellucid.models.decoder import Decoder
from tests.alignment.chats import CONFIG, base_tokenizer
from tests.checkpoints.tiny import CONFIGS, random_model, tiny_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

TOLERANCE = 1e-4  # float32, scores of order 1: sums in another order differ by about 1e-6 of the largest term
MESSAGES = [{"role": "user", "content": "12?"}, {"role": "assistant", "content": "on the 12"}]


@cache
def reward_model(labels: int = 1) -> RewardModel:
    return RewardModel(Classifier.of(random_model(CONFIGS["llama"]), labels), tiny_tokenizer())


@settings(max_examples=20)
@given(st.lists(st.lists(st.integers(0, 271), min_size=1, max_size=64), max_size=24))
def test_packed_equals_alone(conversations: list[list[int]]) -> None:
    """Promise D3."""
    judge = reward_model()
    scores = judge.score(conversations)
    with torch.no_grad():
        for ids, score in zip(conversations, scores, strict=True):
            assert score == pytest.approx(float(judge.model.scores(torch.tensor([ids]))[0, -1]), abs=TOLERANCE)


def test_the_score_is_read_where_the_turn_ends() -> None:
    """An answer of the engine ends with that token too, and no template's line end follows there."""
    judge, tokenizer = reward_model(), tiny_tokenizer()
    ids = said_ids(tokenizer, MESSAGES)
    assert tokenizer.decode(ids).endswith("on the 12<|im_end|>")
    assert judge.score_messages([MESSAGES]) == judge.score([ids])
    with pytest.raises(InputError, match="the assistant says nothing"):
        said_ids(tokenizer, MESSAGES[:1])


def test_what_cannot_be_scored_is_said() -> None:
    judge = reward_model()
    for ids, said in (([], "2 has no token"), ([1] * 65, "2 has 65 tokens and the reward model reads at most 64")):
        with pytest.raises(InputError, match=said):
            judge.score([[1], ids])
    with pytest.raises(InputError, match="a token that is none of the 272"):
        judge.score([[272]])


def test_a_folder_of_another_kind_is_said(tmp_path: Path) -> None:
    save(reward_model(labels=2).model, tiny_tokenizer(), tmp_path / "two")
    with pytest.raises(InputError, match="two gives a text 2 scores"):
        RewardModel.load(tmp_path / "two")
    save(Decoder(CONFIG), base_tokenizer(), tmp_path / "text")
    with pytest.raises(InputError, match="writes text and gives none a score"):
        RewardModel.load(tmp_path / "text")


def test_another_vocabulary_is_said() -> None:
    judge = reward_model()
    judge.check_reads(tiny_tokenizer())
    with pytest.raises(InputError, match=r"different vocabularies: token 263 is '<\|im_start\|>' for the one and None"):
        judge.check_reads(base_tokenizer())
