"""Group-relative policy optimisation (Shao et al. 2024, "DeepSeekMath", section 4): no value model, because the other
answers to a prompt say what was to be expected.

A step: draw G answers to each prompt, reward them, and with A_i how much better answer i is than its group, raise

    J = mean over i of 1/|o_i| sum over t of { min(r A_i, clip(r, 1 - e, 1 + e) A_i) - beta KL }    (equation 3)

r being the ratio of a token's chance under the weights as they are and as they were when it was drawn. In the first
update r is 1, and the A_i of a group add up to 0: the loss is near 0 whatever is learnt, and only its gradient counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from pellucid.alignment.advantages import group_advantages
from pellucid.alignment.before_after import Comparison
from pellucid.alignment.drawn_rows import DrawnRows, Laid
from pellucid.alignment.grpo_recipe import GRPORecipe, GRPOSection
from pellucid.alignment.playing import Game, Played
from pellucid.alignment.policy import Reference
from pellucid.alignment.policy_gradient import clipped_loss, kl_estimate
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
from pellucid.models.decoder import Decoder
from pellucid.tokenizer.tokenizer import Tokenizer
from pellucid.training.loop import Outcome, Trainer
from pellucid.training.method import Moved
from pellucid.training.ranks import Ranks
from pellucid.training.setting import Setting
from pellucid.training.step import Gradient, Measured

MEASURES = (
    "tokens", "val/ratio", "policy/approxkl_avg", "policy/clipfrac_avg", "objective/entropy", "objective/kl",
)  # fmt: skip


@dataclass
class GRPO:
    """The method. reference: None where beta is 0. largest: in this step, of `largest_ratio_error` (promise A1)."""

    recipe: GRPORecipe
    game: Game
    reference: Reference | None
    largest: float = field(default=0.0, init=False)

    def step(self, trainer: Trainer, number: int) -> Moved:
        grpo, batch = self.recipe.grpo, self.recipe.train.batch
        played = self.game.play(number)
        groups = self._groups(played)
        rows = self._rows(trainer, played, groups)
        gradients: list[Gradient] = []
        objective = partial(self._objective, scored=self._several)
        prompts = range((number - 1) * batch, number * batch)
        for update in range(grpo.updates):
            for part in self._parts(rows, self.recipe.seed, number, update):
                gradients.append(trainer.descend(number, part, objective, prompts, measures=MEASURES, look=LOOK))
        measures = played.measures | averaged(gradients)
        measures["groups_all_equal"] = all_equal(groups.to(trainer.setting.device), trainer.ranks)
        measures["rollout/largest_ratio_error"] = trainer.ranks.largest(self.largest)
        measures["objective/kl"] *= measures["answer_tokens"]  # nats an answer
        if number % self.recipe.train.evaluate_every == 0 or number == trainer.steps:
            measures |= self.game.validate()
        real, norm = sum(one.real for one in gradients), sum(one.norm for one in gradients) / len(gradients)
        first = gradients[0]
        return Moved(first.loss, first.learnt, real, norm, played.measures["rollout_seconds"], measures=measures)

    def preflight(self, trainer: Trainer) -> None:
        rows = full_rows(trainer, self.recipe, self.game)
        trainer.gradient(rows, partial(self._objective, scored=True), measures=MEASURES)

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        pass

    @property
    def _several(self) -> bool:
        """Whether there is an update at other weights than those that drew."""
        return self.recipe.grpo.updates * self.recipe.grpo.minibatches > 1

    @cached_property
    def _parts(self) -> Minibatches:
        return Minibatches(self.recipe.grpo.minibatches, self.game.ranks, self.game.say)

    def _groups(self, played: Played) -> Tensor:
        """What the answers to each of this process's prompts earned, (prompts, answers)."""
        grpo, drawn = self.recipe.grpo, self.recipe.rollouts
        rewards = played.rewards
        if grpo.overlong == "punish":
            lengths = torch.tensor([len(one.tokens) for one in played.rollouts])
            rewards = rewards + overlong_punishment(lengths, drawn.max_tokens, grpo.overlong_buffer)
        return rewards.view(-1, drawn.answers)

    def _rows(self, trainer: Trainer, played: Played, groups: Tensor) -> DrawnRows | None:
        """What the updates learn from; None where this process has no answers."""
        grpo, drawn = self.recipe.grpo, self.recipe.rollouts
        self.largest = 0.0
        if not played.rollouts:
            return None
        laid = lay_drawn(trainer, self.game, played.rollouts)
        ended = torch.tensor([one.ended for one in played.rollouts])
        advantages = group_advantages(groups, scaled=grpo.normalise != "dr_grpo").flatten()
        counted = ended if grpo.overlong == "mask" else torch.ones_like(ended)
        rows = weighed(laid, advantages, counted, grpo, drawn.max_tokens)
        if self._several:
            old = known_before(trainer, trainer.model, rows, self._log_probs)
            self.largest = largest_ratio_error(old, rows.old)
            rows = replace(rows, old=old)
        if self.reference is not None:
            with self.reference() as model:
                rows = replace(rows, reference=known_before(trainer, model, rows, self._log_probs))
        return rows

    def _log_probs(self, model: Decoder, rows: DrawnRows) -> Tensor:
        return self.game.log_probs(model, rows)[0]

    def _objective(self, model: Decoder, rows: DrawnRows, *, scored: bool) -> Measured:
        """scored: `rows.old` is by training's own forward; if not, this is the one update, at the weights that drew."""
        grpo, learnt = self.recipe.grpo, rows.learnt
        log_probs, entropies = self.game.log_probs(model, rows)
        old, weights = rows.old[learnt], rows.weights[learnt]
        if not scored:
            self.largest = max(self.largest, largest_ratio_error(log_probs, old))
            old = log_probs.detach()
        losses, ratio, clipped = clipped_loss(
            log_probs, old, rows.advantages[learnt], grpo.clip, grpo.clip if grpo.clip_high is None else grpo.clip_high
        )
        kl = torch.zeros_like(log_probs)
        if self.reference is not None:
            kl = kl_estimate(log_probs, rows.reference[learnt], grpo.kl)
            losses = losses + grpo.beta * kl
        named = (ratio, (log_probs - old) ** 2 / 2, clipped, entropies, kl)
        return summed((weights * losses).sum(), dict(zip(MEASURES[1:], named, strict=True)))


def all_equal(groups: Tensor, ranks: Ranks) -> float:
    """Which part of the groups (prompts, answers) of all processes earned the same with each answer."""
    same = (groups == groups[:, :1]).all(-1)
    equal, count = ranks.sum(torch.stack([same.sum(), same.new_tensor(len(same), dtype=torch.int64)])).tolist()
    return float(equal / count)


# weights and units: the loss is  sum of w_t L_t / number of units
#   grpo     w = 1 / |o_i|, a unit an answer       (Shao et al. 2024, equation 3)
#   dr_grpo  w = 1 / max_tokens, a unit an answer  (Liu et al. 2025, section 3.2, the constant made one of scale)
#   dapo     w = 1, a unit a token                 (Yu et al. 2025, equation 8)
def weighed(laid: Laid, advantages: Tensor, counted: Tensor, grpo: GRPOSection, max_tokens: int) -> DrawnRows:
    """The rows with the advantage, (S,), and the weight of each token; answers that are not `counted`, (S,), have 0."""
    device = laid.mask.device
    lengths = laid.mask.sum(-1, keepdim=True)
    inside = laid.mask * counted.to(device)[:, None]  # (S, L)
    if grpo.normalise == "dapo":
        weights = units = inside.float()
    else:
        weights = inside / (lengths if grpo.normalise == "grpo" else max_tokens)
        units = torch.zeros_like(weights)
        units[:, 0] = inside[:, 0]
    return replace(
        laid.rows, advantages=laid.by_place(advantages.to(device)[:, None]), weights=laid.by_place(weights),
        units=laid.by_place(units),
    )  # fmt: skip


# R(y) = 0 for |y| <= max - buffer;  (max - buffer - |y|) / buffer up to max  (Yu et al. 2025, equation 13)
def overlong_punishment(lengths: Tensor, max_tokens: int, buffer: int) -> Tensor:
    """What an answer of so many tokens loses, (S,): from 0 to -1 over the last `buffer` tokens."""
    return ((max_tokens - buffer - lengths) / buffer).clamp(-1, 0)


def to_watch(recipe: GRPORecipe) -> Sequence[str]:
    """What the log means, said once (promise A4)."""
    return (
        "the loss is near 0 at first whatever is learnt: the ratio is 1, and a group's advantages add up to 0; its "
        "gradient is what counts",
        "four numbers to watch in metrics.jsonl: reward (should rise), objective/kl (how far from the base; "
        + ("0 here, because grpo.beta is 0)," if not recipe.grpo.beta else "should stay small),")
        + " objective/entropy (near 0: it has stopped exploring), groups_all_equal (near 1: nothing left to learn "
        "from, the prompts are all too easy or too hard)",
    )


def train_grpo(recipe: GRPORecipe, *, say: Callable[[str], None] = print) -> tuple[Outcome, Comparison | None]:
    """Runs the recipe, or goes on with it. Results and errors as `rollout_run.learn` has them."""

    def make(model: Decoder, _: Tokenizer, game: Game, __: Setting) -> Learner:
        return Learner(GRPO(recipe, game, Reference(model, recipe.base) if recipe.grpo.beta else None))

    return learn(recipe, make, to_watch(recipe), say)
