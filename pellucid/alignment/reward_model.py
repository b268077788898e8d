"""A reward model at work: conversations in, a number for each out.

A score is read at the last token that the assistant says, the one that ends its turn: there, and nowhere else, it was
learnt (Ouyang et al. 2022, section 3.5).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pellucid.checkpoints.load import load_classifier
from pellucid.data.documents import with_ends
from pellucid.data.packing import pack
from pellucid.errors import InputError
from pellucid.layers.batch import PADDING, Batch
from pellucid.models.classifier import Classifier
from pellucid.tokenizer.tokenizer import Tokenizer

ROW = 1024  # tokens of a packed row, at least
TOGETHER = 4  # rows at a time


@dataclass(frozen=True, slots=True)
class RewardModel:
    """A classifier of one label, and the tokenizer of what it reads."""

    model: Classifier
    tokenizer: Tokenizer
    name: str = "the reward model"

    @classmethod
    def load(cls, name: str | Path, *, device: str = "cpu") -> RewardModel:
        """From a folder, a run or a hub id, in float32. Raises `InputError` where it gives no score, or several."""
        model, tokenizer = load_classifier(name, dtype="float32", device=device)
        if model.labels != 1:
            raise InputError(f"{name} gives a text {model.labels} scores: a reward model gives one")
        return cls(model, tokenizer, str(name))

    def check_reads(self, tokenizer: Tokenizer, who: str = "the policy") -> None:
        """Raises `InputError` where a token id of `tokenizer` is another token here: scores would say nothing."""
        ours, theirs = self.tokenizer.pieces.contents, tokenizer.pieces.contents
        if ours == theirs:
            return
        first = next(number for number in sorted({*ours, *theirs}) if ours.get(number) != theirs.get(number))
        raise InputError(
            f"{self.name} and {who} have different vocabularies: token {first} is {ours.get(first)!r} for the one and "
            f"{theirs.get(first)!r} for the other; train a reward model from the same base"
        )

    @torch.inference_mode()
    def score(self, conversations: Sequence[Sequence[int]]) -> list[float]:
        """The score of each conversation of token ids, at its last token; the neighbours have no part in it.

        Raises `InputError` for one that is empty, longer than the context, or has an unknown token.
        """
        if not conversations:
            return []
        for number, ids in enumerate(conversations, 1):
            self._check(ids, number)
        lengths = np.array([len(ids) for ids in conversations])
        order, rows = pack(lengths, max(ROW, int(lengths.max())), seed=0)
        packed = [order[begin:end].tolist() for begin, end in pairwise(rows)]
        scores = [0.0] * len(conversations)
        for begin in range(0, len(packed), TOGETHER):
            for number, score in self._score_rows(conversations, packed[begin : begin + TOGETHER]):
                scores[number] = score
        return scores

    def score_messages(self, conversations: Sequence[Sequence[Mapping[str, Any]]]) -> list[float]:
        """The same of messages, the last of them by the assistant, through the chat template."""
        return self.score([said_ids(self.tokenizer, messages) for messages in conversations])

    def _score_rows(self, conversations: Sequence[Sequence[int]], rows: list[list[int]]) -> list[tuple[int, float]]:
        """(conversation, score) of all that is in these rows, each a list of conversations."""
        T = max(sum(len(conversations[number]) for number in row) for row in rows)
        tokens = torch.zeros(len(rows), T, dtype=torch.int64)
        positions, documents = torch.zeros_like(tokens), torch.full_like(tokens, PADDING)
        ends = []
        for row, numbers in enumerate(rows):
            begin = 0
            for place, number in enumerate(numbers):
                ids = conversations[number]
                here = slice(begin, begin + len(ids))
                tokens[row, here] = torch.tensor(list(ids))
                positions[row, here], documents[row, here] = torch.arange(len(ids)), place
                begin += len(ids)
                ends.append((row, begin - 1))
        device = self.model.device
        scores = self.model.scores(tokens.to(device), Batch(positions.to(device), documents.to(device)))
        found = [scores[row, end].item() for row, end in ends]
        return list(zip((number for row in rows for number in row), found, strict=True))

    def _check(self, ids: Sequence[int], number: int) -> None:
        longest, size = self.model.config.max_positions, self.model.config.vocab_size
        if not len(ids):
            raise InputError(f"conversation {number} has no token, so there is nothing to score: leave it out")
        if len(ids) > longest:
            raise InputError(
                f"conversation {number} has {len(ids)} tokens and {self.name} reads at most {longest}: make it shorter"
            )
        if not 0 <= min(ids) <= max(ids) < size:
            raise InputError(f"conversation {number} has a token that is none of the {size} of {self.name}")


def said_ids(
    tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None
) -> list[int]:
    """A conversation through the token that ends the assistant's last turn, as an answer of the engine ends too.

    Raises `InputError` where the assistant says nothing, or the chat template refuses it.
    """
    chat = tokenizer.apply_chat_template(messages, tools=tools)
    if not any(chat.assistant_mask):
        raise InputError("the assistant says nothing in the conversation, so there is nothing to score: add its answer")
    ids, said = with_ends(chat.ids, chat.assistant_mask, tokenizer.stop_ids)
    return ids[: len(said) - said[::-1].index(True)]
