"""What the recipes of GRPO and PPO have in common: a policy, prompts, how answers are drawn, and what they earn."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from pellucid.alignment.policy import AdapterRecipe
from pellucid.alignment.recipe import FineTuningOptimRecipe, ReportRecipe
from pellucid.training.recipe import DataRecipe, Recipe, Section, Switch, TrainRecipe


class PromptDataRecipe(DataRecipe):
    """Prompts. validation: other ones, for which the reward is measured."""

    context: int = Field(512, ge=2)  # tokens of a prompt and its answer
    validation_fraction: float = Field(0.0, ge=0, le=0)  # prompts to validate on are files of their own
    chat: bool = True  # through the chat template; false: a prompt is a text that the model goes on with
    too_long: Literal["error", "drop"] = "error"  # a prompt that leaves too little room for its answer


class RolloutRecipe(Section):
    """How answers are drawn: what is drawn from is what is learnt."""

    answers: int = Field(8, ge=1, le=128)  # to each prompt
    max_tokens: int = Field(128, gt=0)  # of an answer
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    together: int = Field(64, gt=0)  # answers that are drawn at once
    unended: float = Field(0.0, ge=0)  # taken off the reward of an answer that had not ended by max_tokens


class RewardRecipe(Section):
    """A function, and what it is multiplied with in the sum."""

    name: str
    weight: float = 1.0


def _named(value: Any) -> Any:
    """One reward or a list of them, each a name or a section."""
    several = value if isinstance(value, list | tuple) else [value]
    return [{"name": one} if isinstance(one, str) else one for one in several]


class RolloutTrainRecipe(TrainRecipe):
    """batch: prompts a step. micro_batch: packed rows of answers at a time."""

    batch: int = Field(8, gt=0)
    evaluate_every: int = Field(50, gt=0)
    evaluate_rows: int = Field(32, gt=0)  # prompts of data.validation
    save_every: int = Field(100, gt=0)
    explode: float = Field(1000.0, gt=0)  # the loss says little here: watch the reward and the KL


class RolloutOptimRecipe(FineTuningOptimRecipe):
    """Small steps, all of one size."""

    lr: float = Field(1e-6, gt=0)
    warmup: int = Field(0, ge=0)
    schedule: Literal["cosine", "wsd", "constant"] = "constant"


class RolloutsRecipe(Recipe):
    """A policy that learns from what its own answers earn."""

    base: str
    compile: Switch = "off"  # rows are of other lengths in each step
    adapter: AdapterRecipe | None = None
    data: PromptDataRecipe
    optim: RolloutOptimRecipe = RolloutOptimRecipe()
    train: RolloutTrainRecipe
    rollouts: RolloutRecipe = RolloutRecipe()
    rewards: Annotated[tuple[RewardRecipe, ...], BeforeValidator(_named)] = ()
    reward_model: str | None = None  # its score is added to the rewards
    report: ReportRecipe = ReportRecipe()

    @model_validator(mode="after")
    def _fits(self) -> RolloutsRecipe:
        if not self.rewards and self.reward_model is None:
            raise ValueError("nothing says what an answer earns: give rewards or reward_model")
        if self.rollouts.max_tokens >= self.data.context:
            raise ValueError(
                f"rollouts.max_tokens = {self.rollouts.max_tokens} leaves no room for a prompt in data.context = "
                f"{self.data.context}: make the one smaller or the other larger"
            )
        if self.adapter is not None and self.adapter.dropout:
            raise ValueError(
                "adapter.dropout must be 0: with it, what is learnt from would not be what the answers were drawn from"
            )
        return self
