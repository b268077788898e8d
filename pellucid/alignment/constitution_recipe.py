"""The recipe of a constitutional run: one model, one constitution, two phases."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from pydantic import Field, field_validator, model_validator

from pellucid.alignment.constitution import read_constitution
from pellucid.alignment.dpo_recipe import DPORecipe
from pellucid.alignment.ppo_recipe import PPORecipe
from pellucid.alignment.recipe import SFTRecipe
from pellucid.alignment.reward_recipe import RewardRecipe
from pellucid.data.tinyworld import TinyWorld
from pellucid.errors import InputError
from pellucid.training.recipe import Paths, Recipe, Section, parse_recipe
from pellucid.training.schedules import scale

Fields = dict[str, Any]
WHOLE = ("run", "base", "seed", "precision")  # what no section says for itself
R = TypeVar("R", bound=Recipe)


class PromptsRecipe(Section):
    """Prompts in files (`{"prompt": ...}` or messages, a line each) or bundled ones, as bundled:red-team."""

    red_team: Paths = Field(("bundled:red-team",), min_length=1)  # which tempt the model to do harm
    helpful: Paths = Field(("bundled:helpful",), min_length=1)  # which it is to go on answering well
    held_out: float = Field(0.25, gt=0, lt=1)  # the part of each that is only measured on


class WorldRecipe(Section):
    """A TinyWorld that asks: about its train people to learn from, about the held-out ones to be measured on."""

    seed: int = 0
    people: int = Field(40, ge=8, le=5000)
    times: int = Field(2, ge=1)  # wordings of each question to learn from
    obeying: Fields | None = None  # of an SFT recipe: the base first learns to do whatever it is asked

    @property
    def made(self) -> TinyWorld:
        return TinyWorld(self.seed, self.people)


class AnswersRecipe(Section):
    """How the model answers, criticises and revises."""

    max_tokens: int = Field(96, gt=0)
    temperature: float = Field(1.0, ge=0)
    together: int = Field(8, gt=0)  # answers under way at once


class ConstitutionRecipe(Section):
    """critic, judge: who criticises, and who judges pairs: the base itself, or the rules of a TinyWorld; None: the
    rules where `world` is given, else the model.

    sft, and dpo or both reward and ppo: fields of these methods' own recipes. DPO learns from the preferences; or a
    reward model does, as in the paper, and PPO from that.
    """

    run: str
    base: str
    seed: int = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    constitution: str = "general"
    prompts: PromptsRecipe | None = None
    world: WorldRecipe | None = None
    critic: Literal["model", "rules"] | None = None
    judge: Literal["model", "rules"] | None = None
    rounds: int = Field(2, ge=1)  # of critique and revision, a principle each
    draws: int = Field(2, ge=2, le=16)  # answers to a prompt in phase 2; the first two that differ are judged
    pairs: int = Field(1, ge=1)  # of answers to each prompt
    answers: AnswersRecipe = AnswersRecipe()
    sft: Fields
    dpo: Fields | None = None
    reward: Fields | None = None
    ppo: Fields | None = None

    @field_validator("constitution")
    @classmethod
    def _readable(cls, name: str) -> str:
        read_constitution(name)
        return name

    @model_validator(mode="after")
    def _who_asks(self) -> ConstitutionRecipe:
        if self.world is not None and self.prompts is not None:
            raise ValueError("give either prompts or a world that asks, not both")
        if self.world is None and "rules" in (self.critic, self.judge):
            raise ValueError("rules judge a TinyWorld alone: give a world, or critic: model and judge: model")
        return self

    @model_validator(mode="after")
    def _stages(self) -> ConstitutionRecipe:
        """What is wrong with a stage's recipe is said before the first one runs."""
        self.sft_stage("sft", self.sft, self.base, "conversations.jsonl")
        if self.world is not None and self.world.obeying is not None:
            self.sft_stage("obeying", self.world.obeying, self.base, "conversations.jsonl")
        if self.dpo is not None:
            self.dpo_stage(self.base, "preferences.jsonl")
        if self.reward is not None:
            self.reward_stage(self.base, "preferences.jsonl")
        if self.ppo is not None:
            self.ppo_stage(self.base, "prompts.jsonl")
        return self

    @model_validator(mode="after")
    def _one_way(self) -> ConstitutionRecipe:
        rewarded = self.reward is not None and self.ppo is not None
        if (self.dpo is not None) == rewarded or (self.reward is None) != (self.ppo is None):
            raise ValueError("say how to learn from the preferences: give either dpo, or both reward and ppo")
        return self

    @property
    def rules_criticise(self) -> bool:
        return self.critic == "rules" or (self.critic is None and self.world is not None)

    @property
    def rules_judge(self) -> bool:
        return self.judge == "rules" or (self.judge is None and self.world is not None)

    def sft_stage(self, name: str, fields: Fields, base: str, data: str) -> SFTRecipe:
        return self._stage(name, SFTRecipe, fields, base, data)

    def dpo_stage(self, base: str, data: str) -> DPORecipe:
        return self._stage("dpo", DPORecipe, self.dpo or {}, base, data)

    def reward_stage(self, base: str, data: str) -> RewardRecipe:
        return self._stage("reward", RewardRecipe, self.reward or {}, base, data)

    def ppo_stage(self, base: str, data: str) -> PPORecipe:
        fields = {"reward_model": f"{self.run}/reward", **(self.ppo or {})}
        return self._stage("ppo", PPORecipe, fields, base, data)

    def _stage(self, name: str, kind: type[R], fields: Fields, base: str, train: str) -> R:
        """The recipe of a stage: its own fields, and what the whole says of it. Its data are in the file `train`."""
        data, section = fields.get("data", {}), f"the section {name}"
        if not isinstance(data, dict):
            raise InputError(f"{section}: data = {data!r}: give fields, as data: {{context: 256}}, or leave it out")
        overruled = [field for field in WHOLE if field in fields] + ["data.train"] * ("train" in data)
        if overruled:
            raise InputError(f"{section}: {overruled[0]} is said by the whole recipe: leave it out of the section")
        given = {"run": f"{self.run}/{name}", "base": base, "seed": self.seed, "precision": self.precision}
        stage = parse_recipe({**fields, **given, "data": {**data, "train": train}}, kind, section)
        if stage.train.steps is not None:
            scale(stage.optim, 0, stage.train.steps)  # raises where the schedule does not fit
        return stage
