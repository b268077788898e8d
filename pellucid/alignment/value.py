"""The value model of PPO: what an answer, as far as it is written, can still be expected to earn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from pellucid.alignment.policy import open_policy
from pellucid.alignment.reward_model import RewardModel
from pellucid.checkpoints.save import About
from pellucid.models.classifier import Classifier
from pellucid.tokenizer.tokenizer import Tokenizer
from pellucid.training.saved import Saved, WholeModel

VALUE = "value"  # its folder in a checkpoint


def open_value(value: str | None, base: str, tokenizer: Tokenizer, seed: int, device: torch.device) -> Classifier:
    """The value model before its first step, in float32: `value`, a reward model's folder, or `base` with a new head.

    Raises `InputError` for one that gives no score, or reads other tokens than the policy.
    """
    if value is None:
        return Classifier.of(open_policy(base)[0], seed=seed).to(device).requires_grad_(True)
    found = RewardModel.load(value, device=str(device))
    found.check_reads(tokenizer)
    return found.model.requires_grad_(True)


@dataclass(frozen=True, slots=True)
class PolicyAndValue:
    """What a PPO run writes: the policy, and in a folder of its own the value model."""

    policy: Saved
    value: Classifier
    tokenizer: Tokenizer

    def write(self, folder: Path, about: About) -> None:
        self.policy.write(folder, about)
        (folder / VALUE).mkdir()
        WholeModel(self.value, self.tokenizer).write(folder / VALUE, about)

    def restore(self, folder: Path) -> None:
        self.policy.restore(folder)
        WholeModel(self.value, self.tokenizer).restore(folder / VALUE)
