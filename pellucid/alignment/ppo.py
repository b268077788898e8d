"""Proximal policy optimisation of a language model (Schulman et al. 2017; for language Ziegler et al. 2019, Ouyang et
al. 2022): a token is an action, and the reward comes with the last one.

A step: draw answers, give token t the reward  r_t = -beta (ln p(t) - ln p_ref(t)),  and the last one the score of the
answer beside it; estimate with the value model by how much each token was better than expected; then raise, several
times, the clipped objective of the policy, and bring the values nearer to the returns:

    L = mean over tokens of { max(-A r, -A clip(r, 1 - e, 1 + e)) + c_v L_value - c_e H }
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.alignment.advantages import generalised_advantages, whiten
from pellucid.alignment.before_after import Comparison
from pellucid.alignment.drawn_rows import DrawnRows, Laid
from pellucid.alignment.playing import Game, Played
from pellucid.alignment.policy import Reference, saved_adapter
from pellucid.alignment.policy_gradient import clipped_loss
from pellucid.alignment.ppo_recipe import PPORecipe
from pellucid.alignment.rollout_run import Learner, learn
from pellucid.alignment.updates import (
    LOOK,
    Minibatches,
    averaged,
    full_rows,
    known_before,
    largest_ratio_error,
    lay_drawn,
    summed,
)
from pellucid.alignment.value import PolicyAndValue, open_value
from pellucid.models.classifier import Classifier
from pellucid.models.decoder import Decoder
from pellucid.tokenizer.tokenizer import Tokenizer
from pellucid.training.loop import Outcome, Trainer
from pellucid.training.method import Moved
from pellucid.training.saved import WholeModel
from pellucid.training.setting import Setting
from pellucid.training.step import Gradient, Measured

MEASURES = (
    "tokens", "val/ratio", "policy/approxkl_avg", "policy/clipfrac_avg", "objective/entropy", "loss/policy_avg",
    "loss/value_avg", "val/clipfrac_avg",
)  # fmt: skip
GAIN = 0.2  # of the error of the KL, at most, in one step (Ziegler et al. 2019, section 2.2)


@dataclass
class PPO:
    """The method. beta: the coefficient of the KL as it is now. largest: as in `GRPO`."""

    recipe: PPORecipe
    game: Game
    reference: Reference
    value: Classifier
    beta: float = field(init=False)
    largest: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self.beta = self.recipe.ppo.beta

    def step(self, trainer: Trainer, number: int) -> Moved:
        ppo, batch = self.recipe.ppo, self.recipe.train.batch
        played = self.game.play(number)
        rows, beside = self._rows(trainer, played)
        gradients: list[Gradient] = []
        prompts = range((number - 1) * batch, number * batch)
        for epoch in range(ppo.epochs):
            for part in self._parts(rows, self.recipe.seed, number, epoch):
                gradients.append(trainer.descend(number, part, self._objective, prompts, measures=MEASURES, look=LOOK))
                if moved_too_far(gradients[-1], ppo.stop_kl):
                    break
            if moved_too_far(gradients[-1], ppo.stop_kl):
                break
        measures = played.measures | beside | averaged(gradients)
        measures["rollout/largest_ratio_error"] = trainer.ranks.largest(self.largest)
        measures["updates"] = len(gradients)
        if ppo.kl_target is not None:
            self.beta = adapted(self.beta, measures["objective/kl"], ppo.kl_target, ppo.kl_horizon)
        if number % self.recipe.train.evaluate_every == 0 or number == trainer.steps:
            measures |= self.game.validate()
        real, norm = sum(one.real for one in gradients), sum(one.norm for one in gradients) / len(gradients)
        first = gradients[0]
        return Moved(first.loss, first.learnt, real, norm, played.measures["rollout_seconds"], measures=measures)

    def preflight(self, trainer: Trainer) -> None:
        rows = full_rows(trainer, self.recipe, self.game)
        trainer.gradient(rows, self._objective, measures=MEASURES)

    def state(self) -> dict[str, Any]:
        return {"beta": self.beta}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.beta = state["beta"]

    @cached_property
    def _parts(self) -> Minibatches:
        return Minibatches(self.recipe.ppo.minibatches, self.game.ranks, self.game.say)

    def _rows(self, trainer: Trainer, played: Played) -> tuple[DrawnRows | None, dict[str, float]]:
        """What the updates learn from, None where this process has no answers; what is known of it in all processes."""
        ppo, ranks = self.recipe.ppo, trainer.ranks
        self.largest = 0.0
        if not played.rollouts:  # the sums are of all processes, in the order in which they come below
            nothing = torch.zeros(0, 0, device=trainer.setting.device)
            if ppo.whiten_rewards:
                whiten(nothing, nothing.bool(), ranks.sum)
            measures = self._measures(nothing, nothing, nothing, played, trainer)
            whiten(nothing, nothing.bool(), ranks.sum)
            return None, measures
        laid = self._scored(trainer, played)
        kl = laid.by_answer(laid.rows.old - laid.rows.reference)  # (S, L), k1
        values = laid.by_answer(laid.rows.values)
        # r_t = -beta (ln p - ln p_ref) + [t is the last token] score  (Ouyang et al. 2022, equation 2)
        rewards = -self.beta * kl
        last = laid.mask.sum(-1, keepdim=True) - 1
        rewards = rewards.scatter_add(-1, last, played.rewards.to(rewards)[:, None])
        if ppo.whiten_rewards:
            rewards = whiten(rewards, laid.mask, ranks.sum, shift=False)
        advantages, returns = generalised_advantages(rewards, values, laid.mask, ppo.discount, ppo.trace)
        measures = self._measures(kl, returns[laid.mask], values[laid.mask], played, trainer)
        advantages = whiten(advantages, laid.mask, ranks.sum)
        ones = laid.by_place(laid.mask.float())
        rows = replace(
            laid.rows, weights=ones, units=ones, advantages=laid.by_place(advantages), returns=laid.by_place(returns)
        )
        return rows, measures

    def _scored(self, trainer: Trainer, played: Played) -> Laid:
        """The answers in rows, with what policy, reference and value model say of them before the updates."""
        laid = lay_drawn(trainer, self.game, played.rollouts)
        old = known_before(trainer, trainer.model, laid.rows, self._log_probs)
        self.largest = largest_ratio_error(old, laid.rows.old)
        with self.reference() as model:
            reference = known_before(trainer, model, laid.rows, self._log_probs)
        values = known_before(trainer, self.value, laid.rows, values_of)
        return replace(laid, rows=replace(laid.rows, old=old, reference=reference, values=values))

    def _log_probs(self, model: Decoder, rows: DrawnRows) -> Tensor:
        return self.game.log_probs(model, rows)[0]

    def _objective(self, model: Decoder, rows: DrawnRows) -> Measured:
        ppo, learnt = self.recipe.ppo, rows.learnt
        log_probs, entropies = self.game.log_probs(model, rows)
        old = rows.old[learnt]
        losses, ratio, clipped = clipped_loss(log_probs, old, rows.advantages[learnt], ppo.clip, ppo.clip)
        value_losses, value_clipped = value_loss(
            values_of(self.value, rows), rows.values[learnt], rows.returns[learnt], ppo.value_clip
        )
        total = (losses + ppo.value_weight * value_losses - ppo.entropy * entropies).sum()
        named = (ratio, (log_probs - old) ** 2 / 2, clipped, entropies, losses, value_losses, value_clipped)
        return summed(total, dict(zip(MEASURES[1:], named, strict=True)))

    def _measures(
        self, kl: Tensor, returns: Tensor, values: Tensor, played: Played, trainer: Trainer
    ) -> dict[str, float]:
        """kl: (S, L); returns, values: (N,). All processes' together."""
        errors = returns - values
        parts: list[Tensor | float] = [
            len(kl), kl.sum(), returns.numel(), returns.sum(), (returns**2).sum(), errors.sum(), (errors**2).sum(),
            values.sum(),
        ]  # fmt: skip
        sums = torch.tensor([float(part) for part in parts], dtype=torch.float64, device=kl.device)
        answers, total_kl, tokens, *rest = trainer.ranks.sum(sums).tolist()
        mean_return, squares, mean_error, square_errors, mean_value = (one / tokens for one in rest)
        spread = squares - mean_return**2
        mean_kl = total_kl / answers
        explained = 1 - (square_errors - mean_error**2) / spread if spread > 1e-12 else 0.0
        return {
            "objective/kl": mean_kl,
            "objective/kl_coef": self.beta,
            "objective/scores": played.measures["reward"],
            "objective/non_score_reward": -self.beta * mean_kl,
            "objective/rlhf_reward": played.measures["reward"] - self.beta * mean_kl,
            "val/mean": mean_value,
            "val/explained_variance": explained,
        }


def values_of(value: Decoder, rows: DrawnRows) -> Tensor:
    """V before each drawn token, (N,), float32."""
    assert isinstance(value, Classifier)
    return value.scores(rows.tokens, rows.batch)[rows.learnt].float()


# L = 1/2 max((V - R)^2, (clip(V, V_old - e, V_old + e) - R)^2)  (as in the code beside Schulman et al. 2017, whose
# paper gives the square alone)
def value_loss(values: Tensor, old: Tensor, returns: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """The loss of each value, and whether the clipped side was the larger one; all of one shape."""
    near = old + (values - old).clamp(-clip, clip)
    free, clipped = (values - returns) ** 2, (near - returns) ** 2
    return torch.maximum(free, clipped) / 2, (clipped > free).detach()


# e = clip(KL / target - 1, -0.2, 0.2);  beta <- beta (1 + K e)  (Ziegler et al. 2019, section 2.2), K = 1 / horizon
def adapted(beta: float, kl: float, target: float, horizon: float) -> float:
    """The coefficient of the KL for the next step."""
    return beta * (1 + min(max(kl / target - 1, -GAIN), GAIN) / horizon)


def moved_too_far(gradient: Gradient, most: float | None) -> bool:
    """Whether the policy of this update was farther from the one that drew than `most`, in nats a token."""
    far = gradient.measures["policy/approxkl_avg"] / max(gradient.measures["tokens"], 1e-9)
    return most is not None and far > most


def to_watch(recipe: PPORecipe) -> Sequence[str]:
    """What the log means, said once (promise A4)."""
    return (
        "loss/policy_avg is near 0 at the first update of a step whatever is learnt: the ratio is 1, and whitened "
        "advantages add up to 0; its gradient is what counts",
        "four numbers to watch in metrics.jsonl: objective/scores (should rise), objective/kl (nats an answer from the "
        "base: below 0 or above a few tens something is wrong), val/explained_variance (should come near 1), "
        "policy/clipfrac_avg (above 0.3 the steps are too large)",
    )


def train_ppo(recipe: PPORecipe, *, say: Callable[[str], None] = print) -> tuple[Outcome, Comparison | None]:
    """Runs the recipe, or goes on with it. Results and errors as `rollout_run.learn` has them."""

    def make(model: Decoder, tokenizer: Tokenizer, game: Game, setting: Setting) -> Learner:
        value = open_value(recipe.ppo.value, recipe.base, tokenizer, recipe.seed, setting.device)
        policy = saved_adapter(model, tokenizer, recipe.base, recipe.adapter) or WholeModel(model, tokenizer)
        method = PPO(recipe, game, Reference(model, recipe.base), value)
        both = nn.ModuleDict({"policy": model, "value": value})
        return Learner(method, PolicyAndValue(policy, value, tokenizer), both)

    return learn(recipe, make, to_watch(recipe), say, value=recipe.ppo.value)
