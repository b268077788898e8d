"""The recipe of a GRPO run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pellucid.alignment.policy_gradient import Estimator
from pellucid.alignment.rollout_recipe import RolloutsRecipe
from pellucid.training.recipe import Section


class GRPOSection(Section):
    """normalise: grpo takes the mean over an answer's tokens, then over answers, and divides a group's advantages by
    their standard deviation (Shao et al. 2024); dr_grpo does neither, and divides by max_tokens (Liu et al. 2025); dapo
    takes the mean over all tokens (Yu et al. 2025). overlong: what becomes of an answer that has not ended by
    max_tokens: keep it, mask it (its tokens are not learnt from), or punish what comes near (DAPO, equation 13)."""

    normalise: Literal["grpo", "dr_grpo", "dapo"] = "grpo"
    clip: float = Field(0.2, gt=0)
    clip_high: float | None = Field(None, gt=0)  # upwards; None: as `clip`; DAPO's clip-higher is 0.28
    beta: float = Field(0.0, ge=0)  # of the KL to the reference policy; 0 needs no reference; the paper has 0.04
    kl: Estimator = "k3"
    updates: int = Field(1, ge=1)  # times that a step's answers are learnt from
    minibatches: int = Field(1, ge=1)  # parts that they are learnt from in
    overlong: Literal["keep", "mask", "punish"] = "keep"
    overlong_buffer: int = Field(32, gt=0)  # tokens before max_tokens over which the punishment grows to 1


class GRPORecipe(RolloutsRecipe):
    """Group-relative policy optimisation of `base`, from the rewards of its own answers."""

    grpo: GRPOSection = GRPOSection()

    @model_validator(mode="after")
    def _groups(self) -> GRPORecipe:
        if self.rollouts.answers < 2:
            raise ValueError("rollouts.answers = 1: GRPO compares the answers to a prompt, so give 2 at least")
        if self.grpo.overlong == "punish" and self.grpo.overlong_buffer > self.rollouts.max_tokens:
            raise ValueError(
                f"grpo.overlong_buffer = {self.grpo.overlong_buffer} is more than rollouts.max_tokens = "
                f"{self.rollouts.max_tokens}: make it smaller"
            )
        return self
