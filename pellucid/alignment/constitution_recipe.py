"""The recipe of a constitutional run: one model, one constitution, two phases."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from pellucid.alignment.constitution import read_constitution
from pellucid.alignment.dpo_recipe import DPORecipe
from pellucid.alignment.recipe import SFTRecipe
from pellucid.training.recipe import Paths, Recipe, Section, parse_recipe


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
    obeying: dict[str, Any] | None = None  # fields of an SFT recipe: the base first learns to do whatever it is asked


class AnswersRecipe(Section):
    """How the model answers, criticises and revises."""

    max_tokens: int = Field(96, gt=0)
    temperature: float = Field(1.0, ge=0)
    together: int = Field(8, gt=0)  # answers under way at once


class ConstitutionRecipe(Section):
    """critic, judge: who criticises, and who judges pairs: the base itself, or the rules of a TinyWorld; None: the
    rules where `world` is given, else the model. method: what learns from the preferences.
    sft, dpo: fields of these methods' own recipes."""

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
    answers: AnswersRecipe = AnswersRecipe()
    method: Literal["dpo"] = "dpo"
    sft: dict[str, Any]
    dpo: dict[str, Any]

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
        self.stage("sft", SFTRecipe, self.sft, self.base, "conversations.jsonl")
        self.stage("dpo", DPORecipe, self.dpo, self.base, "preferences.jsonl")
        if self.world is not None and self.world.obeying is not None:
            self.stage("obeying", SFTRecipe, self.world.obeying, self.base, "conversations.jsonl")
        return self

    @property
    def rules_criticise(self) -> bool:
        return self.critic == "rules" or (self.critic is None and self.world is not None)

    @property
    def rules_judge(self) -> bool:
        return self.judge == "rules" or (self.judge is None and self.world is not None)

    def stage(self, name: str, kind: type[Recipe], fields: dict[str, Any], base: str, train: str) -> Any:
        """The recipe of a stage: `fields`, what the whole says, and where its data are."""
        place = f"{self.run}/{name}"
        data = {"train": train, **fields.get("data", {})}
        given = {"run": place, "base": base, "seed": self.seed, "precision": self.precision}
        return parse_recipe({**given, **fields, "data": data}, kind, f"the section {name}")
