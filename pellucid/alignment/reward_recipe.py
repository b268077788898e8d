"""The recipe of a reward model."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pellucid.alignment.policy import AdapterRecipe
from pellucid.alignment.recipe import FineTuningOptimRecipe
from pellucid.training.recipe import DataRecipe, Recipe, Section


class ComparisonDataRecipe(DataRecipe):
    """What is learnt from: preferences, or rankings of several answers; all answers to a prompt in one row."""

    validation_fraction: float = Field(0.1, ge=0, lt=1)  # of the prompts, where `validation` is empty
    context: int = Field(512, ge=2)  # tokens of a prompt with an answer
    too_long: Literal["error", "drop", "cut"] = "error"  # a pair of which an answer is longer than that
    label_noise: float = Field(0.0, ge=0, le=1)  # this part of the training pairs is turned round, to see what it does


class ComparingRecipe(Section):
    """What the loss asks for.

    margin: how much higher the better answer's reward has to be (Touvron et al. 2023, section 3.2.2). centring: the
    weight of the squared sum of both rewards, which holds them around 0 (Eisenstein et al. 2023).
    """

    margin: float = Field(0.0, ge=0)
    centring: float = Field(0.0, ge=0)


class RewardReportRecipe(Section):
    """What the report shows."""

    shown: int = Field(3, ge=1)  # held-out prompts with the scores of their answers
    bins: int = Field(5, ge=2)  # of the reliability table


class RewardRecipe(Recipe):
    """A reward model on top of `base` (as for `pellucid.load`), from preferences."""

    base: str
    adapter: AdapterRecipe | None = None
    data: ComparisonDataRecipe
    optim: FineTuningOptimRecipe = FineTuningOptimRecipe()
    reward: ComparingRecipe = ComparingRecipe()
    report: RewardReportRecipe = RewardReportRecipe()

    @model_validator(mode="after")
    def _writes_nothing(self) -> RewardRecipe:
        if self.train.sample_prompts:
            raise ValueError("train.sample_prompts: a reward model writes nothing; leave them out")
        return self
