"""The recipe of a supervised fine-tuning run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pellucid.alignment.policy import AdapterRecipe
from pellucid.training.recipe import DataRecipe, OptimRecipe, Paths, Recipe, Section


class ReplayRecipe(Section):
    """Pretraining text mixed in, which the model goes on predicting token by token, against forgetting."""

    data: Paths
    fraction: float = Field(0.1, gt=0, lt=1)  # of the rows


class ConversationDataRecipe(DataRecipe):
    """What is trained on: conversations, each whole in one row."""

    validation_fraction: float = Field(0.05, ge=0, lt=1)
    context: int = Field(512, ge=2)
    too_long: Literal["error", "drop", "cut"] = "error"  # a conversation that the context does not hold
    replay: ReplayRecipe | None = None


class FineTuningOptimRecipe(OptimRecipe):
    """Smaller steps than in pretraining, and no decay: the weights are to stay near those of the base."""

    lr: float = Field(2e-5, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    warmup: int = Field(10, ge=0)


class ReportRecipe(Section):
    """What the base and the fine-tuned model are asked, to be compared."""

    prompts: tuple[str, ...] = ()  # shown; where there are fewer than three, questions of the validation data follow
    questions: int = Field(16, ge=1)  # in all, to see how many answers end
    max_tokens: int = Field(64, gt=0)  # an answer


ROWS = 256  # of old text, where the recipe does not say


class KeepRecipe(Section):
    """What holds the model to what it knew: see `alignment/keeping.py`."""

    penalty: Literal["l2", "ewc", "fip"]
    strength: float = Field(gt=0)  # lambda; of fip, how far a step is turned away from what changes old answers
    data: Paths = ()  # old text, for ewc and fip; none: that of data.replay
    rows: int = Field(ROWS, gt=0)  # of the old text, on which ewc and fip measure what each weight is for

    @model_validator(mode="after")
    def _used(self) -> KeepRecipe:
        if self.penalty == "l2" and self.data:
            raise ValueError("penalty = l2 reads no old text: leave out data, or choose ewc or fip")
        if self.penalty == "l2" and self.rows != ROWS:
            raise ValueError("penalty = l2 reads no old text: leave out rows, or choose ewc or fip")
        return self


class SFTRecipe(Recipe):
    """Supervised fine-tuning of `base` (as for `pellucid.load`), or of an adapter beside it, on conversations."""

    base: str
    adapter: AdapterRecipe | None = None
    data: ConversationDataRecipe
    keep: KeepRecipe | None = None
    optim: FineTuningOptimRecipe = FineTuningOptimRecipe()
    report: ReportRecipe = ReportRecipe()

    @model_validator(mode="after")
    def _has_old_text(self) -> SFTRecipe:
        keep = self.keep
        if keep is None or keep.penalty == "l2":
            return self
        if not keep.data and self.data.replay is None:
            raise ValueError(f"keep.penalty = {keep.penalty} reads old text: give it as keep.data, or as data.replay")
        if keep.penalty == "ewc" and self.adapter is not None:
            raise ValueError(
                "keep.penalty = ewc weighs how much each weight matters at the start, where half of an adapter's do "
                "nothing: choose l2 or fip, or leave out adapter"
            )
        return self
