"""What the tests of a run folder have in common: a recipe, and something that has tensors to be kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pellucid.checkpoints.save import About
from pellucid.models.decoder import Decoder
from pellucid.training.recipe import PretrainRecipe, parse_recipe
from pellucid.training.run import RunFolder
from pellucid.training.state import Checkpoint
from tests.checkpoints.tiny import tiny_tokenizer


def recipe(**changes: Any) -> PretrainRecipe:
    """A small recipe; `changes` are fields or whole sections, given with their parts' names."""
    content = {"run": "x", "data": {"train": "book.txt"}, "train": {"steps": 100}, "model": {"num_layers": 2}}
    return parse_recipe(content | changes, PretrainRecipe, "a recipe")


class Holder:
    """In the place of the optimizers: two tensors, one of them a count."""

    def __init__(self, value: float = 0.0) -> None:
        self.tensors = {"blocks.0.w.exp_avg": torch.full((64, 8), value), "blocks.0.w.step": torch.tensor(value)}

    def state_tensors(self) -> dict[str, Tensor]:
        return self.tensors

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = dict(tensors)


def filled(model: Decoder, value: float) -> Decoder:
    """The model with every weight set to `value`."""
    for parameter in model.parameters():
        parameter.data.fill_(value)
    return model


def save_step(run: RunFolder, step: int, model: Decoder) -> Checkpoint:
    """A checkpoint in which everything, weights, optimizer and state, says `step`."""
    about = About(steps=step, tokens_seen=step * 10, last_loss=1.5)
    return run.save_checkpoint(step, filled(model, step), tiny_tokenizer(), Holder(step), {"tokens": step * 10}, about)
