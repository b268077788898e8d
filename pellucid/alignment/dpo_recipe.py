"""The recipe of a run on preferences."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from pellucid.alignment.policy import AdapterRecipe
from pellucid.alignment.preference_losses import LossName, Settings
from pellucid.alignment.recipe import FineTuningOptimRecipe, ReportRecipe
from pellucid.training.recipe import DataRecipe, Recipe, Section

SIMPO_BETA = 2.0


class PreferenceDataRecipe(DataRecipe):
    """What is compared: pairs of answers. context: the tokens of a prompt with one answer; a row is twice as long."""

    validation_fraction: float = Field(0.1, ge=0, lt=1)  # of the prompts
    context: int = Field(512, ge=2)
    too_long: Literal["error", "drop", "cut"] = "error"  # a pair that the context does not hold
    label_noise: float = Field(0.0, ge=0, le=1)  # this part of the training pairs is turned round, to see what it does


class LossRecipe(Section):
    """The loss, and the numbers in it: see `alignment/preference_losses.py`."""

    loss: LossName = "sigmoid"
    beta: float = 0.1  # how far from the reference an answer's worth is felt; of simpo 2, where it is not given
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)  # robust, conservative: how many labels are wrong
    margin: float = Field(0.5, ge=0)  # simpo: by how much the better answer is to win
    weights: tuple[float, float] = (1.0, 1.0)  # kto: of good answers, and of bad ones

    @model_validator(mode="before")
    @classmethod
    def _usual(cls, given: Any) -> Any:
        """SimPO's beta is of means over tokens, which are smaller than sums (Meng et al. 2024, section 4)."""
        return {"beta": SIMPO_BETA, **given} if isinstance(given, dict) and given.get("loss") == "simpo" else given

    @field_validator("beta")
    @classmethod
    def _positive(cls, beta: float) -> float:
        if beta <= 0:
            raise ValueError(f"{beta:g} is not above 0: with it no answer is better than another; 0.1 is usual")
        return beta

    @model_validator(mode="after")
    def _of_this_loss(self) -> LossRecipe:
        """A number that the loss has not is a misunderstanding."""
        owners = {"label_smoothing": ("robust", "conservative"), "margin": ("simpo",), "weights": ("kto",)}
        for field in self.model_fields_set & owners.keys():
            if self.loss not in owners[field] and getattr(self, field) != type(self).model_fields[field].default:
                raise ValueError(f"{field} is of the loss {' or '.join(owners[field])}, and this one is {self.loss}")
        if self.loss in owners["label_smoothing"] and not self.label_smoothing:
            raise ValueError(
                f"{self.loss} without label_smoothing is sigmoid: say how many labels are wrong, such as 0.1"
            )
        return self

    @property
    def settings(self) -> Settings:
        return Settings(self.beta, self.label_smoothing, self.margin, self.weights)


class DPOOptimRecipe(FineTuningOptimRecipe):
    """Smaller steps still: a pair says which of two answers is better, and the rest of the model is to stay."""

    lr: float = Field(1e-6, gt=0)


class DPORecipe(Recipe):
    """Learning from preferences, of `base` (as for `pellucid.load`), or of an adapter beside it.

    train.batch and train.micro_batch count rows, each of which holds as many pairs as there is room for.
    """

    base: str
    adapter: AdapterRecipe | None = None
    dpo: LossRecipe = LossRecipe()
    data: PreferenceDataRecipe
    optim: DPOOptimRecipe = DPOOptimRecipe()
    report: ReportRecipe = ReportRecipe()
