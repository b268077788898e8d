"""A step's answers and what they earn: the part that GRPO and PPO share."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pellucid.alignment.drawn_rows import DrawnRows, log_probs_of
from pellucid.alignment.prompts import Prompt, Prompts
from pellucid.alignment.reward_model import RewardModel
from pellucid.alignment.rewards import Reward, total_rewards
from pellucid.alignment.rollout_recipe import RolloutsRecipe
from pellucid.alignment.rollouts import Rollout, Rollouts
from pellucid.checkpoints.atomic import refused
from pellucid.data.order import random_number
from pellucid.inference.params import SamplingParams
from pellucid.models.decoder import Decoder
from pellucid.training.loop import SAMPLES
from pellucid.training.metrics import KEPT
from pellucid.training.ranks import Ranks

SEEDS = 1 << 62


@dataclass(frozen=True, slots=True)
class Played:
    """This process's answers of a step, so many to each of its prompts. rewards: (S,). measures: of all processes."""

    rollouts: list[Rollout]
    rewards: Tensor
    measures: dict[str, float]


@dataclass(frozen=True, slots=True)
class Game:
    """Prompts, answers and rewards. run: the folder in which a prompt's answers of each step are kept, or None.

    say: is told a line, in the first process."""

    recipe: RolloutsRecipe
    prompts: Prompts
    validation: Prompts | None
    rewards: Sequence[Reward]
    reward_model: RewardModel | None
    rollouts: Rollouts
    ranks: Ranks
    run: Path | None
    say: Callable[[str], None] = lambda _: None

    @property
    def drawable(self) -> int:
        """How many tokens of the vocabulary can be drawn."""
        return self.rollouts.drawable

    def log_probs(self, model: Decoder, rows: DrawnRows) -> tuple[Tensor, Tensor]:
        """ln p of each drawn token, in the distribution that it was drawn from, and the entropy there: (N,) each."""
        return log_probs_of(model, rows, self.drawable, self.recipe.rollouts.temperature)

    def play(self, number: int) -> Played:
        """The answers of step `number`, by the policy as it is now."""
        batch = self.recipe.train.batch
        numbers = range((number - 1) * batch, number * batch)
        began = time.perf_counter()
        mine = self.ranks.share(numbers)
        prompts = self.prompts.read(mine)
        seeds = [random_number(SEEDS, "rollout", self.recipe.seed, one) for one in mine]
        params = self._params()
        self.rollouts.sync()
        rollouts = self.rollouts.generate([one.ids for one in prompts], params, seeds, in_chat=self.recipe.data.chat)
        seconds = time.perf_counter() - began
        totals, sums = self._judge(prompts, rollouts, params.n)
        self._keep(number, prompts, rollouts, totals)
        return Played(rollouts, torch.tensor(totals), self._measures(rollouts, totals, sums, seconds))

    def validate(self) -> dict[str, float]:
        """The reward for the likeliest answers to the prompts that are held out."""
        if self.validation is None:
            return {}
        prompts = self.validation.prompts[: self.recipe.train.evaluate_rows]
        params = self._params().with_({"temperature": 0.0, "top_p": 1.0, "n": 1})
        self.rollouts.sync()
        ids = [one.ids for one in prompts]
        rollouts = self.rollouts.generate(ids, params, [0] * len(ids), in_chat=self.recipe.data.chat)
        totals, _ = self._judge(prompts, rollouts, 1)
        return {"validation_reward": sum(totals) / len(totals)}

    def _params(self) -> SamplingParams:
        drawn = self.recipe.rollouts
        return SamplingParams(
            temperature=drawn.temperature, top_p=drawn.top_p, max_tokens=drawn.max_tokens, n=drawn.answers
        )

    def _judge(
        self, prompts: Sequence[Prompt], rollouts: Sequence[Rollout], each: int
    ) -> tuple[list[float], dict[str, list[float]]]:
        """What each answer earns, and each reward's own numbers."""
        if not rollouts:
            return [], {}
        asked = [prompt for prompt in prompts for _ in range(each)]
        texts = [said(prompt.given, one.text) for prompt, one in zip(asked, rollouts, strict=True)]
        names = {name for prompt in prompts for name in prompt.columns}
        columns: dict[str, list[Any]] = {name: [one.columns.get(name) for one in asked] for name in names}
        columns["completion_ids"] = [list(one.tokens) for one in rollouts]
        totals = [0.0] * len(rollouts)
        sums: dict[str, list[float]] = {}
        if self.rewards:
            totals, sums = total_rewards(self.rewards, [one.given for one in asked], texts, columns)
        if self.reward_model is not None:
            scores = self.reward_model.score([(*one.prompt, *one.tokens) for one in rollouts])
            totals = [total + score for total, score in zip(totals, scores, strict=True)]
            sums["reward_model"] = scores
        off = self.recipe.rollouts.unended
        return [total - off * (not one.ended) for total, one in zip(totals, rollouts, strict=True)], sums

    def _measures(
        self, rollouts: Sequence[Rollout], totals: Sequence[float], sums: dict[str, list[float]], seconds: float
    ) -> dict[str, float]:
        """Means over the answers of all processes."""
        names = [reward.name for reward in self.rewards] + (["reward_model"] if self.reward_model else [])
        lengths = [len(one.tokens) for one in rollouts]
        parts = [
            len(totals), sum(totals), sum(total**2 for total in totals), sum(lengths),
            sum(one.ended for one in rollouts),
            *(part for name in names for part in (len(sums.get(name, ())), sum(sums.get(name, ())))),
        ]  # fmt: skip
        own_sums = torch.tensor(parts, dtype=torch.float64, device=self.rollouts.policy.device)
        count, total, squares, tokens, ended, *each = self.ranks.sum(own_sums).tolist()
        mean = total / count
        own = {f"rewards/{name}": each[2 * i + 1] / max(1, each[2 * i]) for i, name in enumerate(names)}
        return {
            "reward": mean,
            "reward_std": max(0.0, squares / count - mean**2) ** 0.5,
            **(own if len(names) > 1 else {}),
            "answer_tokens": tokens / count,
            "answers_ended": ended / count,
            "rollout_seconds": seconds,
            "rollout_tokens_per_second": sum(lengths) / seconds,
        }

    def _keep(
        self, number: int, prompts: Sequence[Prompt], rollouts: Sequence[Rollout], totals: Sequence[float]
    ) -> None:
        """The answers to a step's first prompt, a line each. Raises `PellucidError` when the disk refuses."""
        if self.run is None or not prompts:
            return
        path = self.run / SAMPLES
        lines = [
            {"step": number, "prompt": prompts[0].given, "text": one.text, "reward": total}
            for one, total in list(zip(rollouts, totals, strict=True))[: self.recipe.rollouts.answers]
        ]
        try:
            with path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        except OSError as error:
            raise refused(path, error, KEPT) from error


def said(given: Any, text: str) -> Any:
    """An answer as rewards get it: text for a prompt that is text, else messages."""
    return text if isinstance(given, str) else [{"role": "assistant", "content": text}]
