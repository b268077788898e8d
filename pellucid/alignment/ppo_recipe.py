"""The recipe of a PPO run."""

from __future__ import annotations

from pydantic import Field

from pellucid.alignment.rollout_recipe import RolloutsRecipe
from pellucid.training.recipe import Section


class PPOSection(Section):
    """The numbers of Schulman et al. 2017, and what Ziegler et al. 2019 and Ouyang et al. 2022 add for language.

    value: the folder that the value model begins from, best a reward model; null: the base with a new head.
    kl_target: the coefficient of the KL adapts so that an answer's KL comes near it, in nats; null: it stays `beta`.
    stop_kl: no further update of a step when the policy has moved so far from the one that drew, in nats a token.
    """

    beta: float = Field(0.05, gt=0)  # what a nat of KL to the reference costs; at the start where it adapts
    kl_target: float | None = Field(None, gt=0)
    kl_horizon: float = Field(10.0, gt=0)  # steps over which it adapts
    discount: float = Field(1.0, gt=0, le=1)  # gamma
    trace: float = Field(0.95, ge=0, le=1)  # lambda of the advantages
    clip: float = Field(0.2, gt=0)  # of the ratio
    value_clip: float = Field(0.2, gt=0)
    value_weight: float = Field(0.1, ge=0)
    entropy: float = Field(0.0, ge=0)  # what a nat of entropy is worth
    epochs: int = Field(4, ge=1)  # times that a step's answers are learnt from
    minibatches: int = Field(1, ge=1)  # parts that they are learnt from in
    whiten_rewards: bool = False  # to variance 1, their mean kept
    stop_kl: float | None = Field(None, gt=0)
    value: str | None = None


class PPORecipe(RolloutsRecipe):
    """Proximal policy optimisation of `base`, from what its own answers earn."""

    ppo: PPOSection = PPOSection()
