"""Direct preference optimisation and its relatives: a policy learns from which of two answers is the better one.

The best policy under a reward r, held to the reference by beta KL, is pi(y | x) ~ ref(y | x) exp(r(x, y) / beta).
Solved for r, the reward that a policy stands for is

    r(x, y) = beta log pi(y | x) / ref(y | x) + beta log Z(x)                         (Rafailov et al. 2023, eq. 5)

and what pairs say of rewards (Bradley & Terry 1952), P(y_w better than y_l) = sigma(r(x, y_w) - r(x, y_l)), is a loss
of the policy itself (eq. 7): no reward model, and nothing is drawn. `alignment/preference_losses.py` has that loss and
its relatives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pellucid.alignment.dpo_recipe import LossRecipe
from pellucid.alignment.preference_losses import LOSSES, WITHOUT_REFERENCE, Compared, LossName, Settings, rewards
from pellucid.alignment.reference import other_log_probs
from pellucid.data.packing import Ints
from pellucid.data.pairs import PairExamples, Pairs
from pellucid.models.decoder import Decoder
from pellucid.training.log_probs import sum_by_sequence, target_log_probs
from pellucid.training.loop import Trainer
from pellucid.training.method import Moved, Supervised
from pellucid.training.step import Measured

MEASURES = (
    "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected",
    "kl",
)  # fmt: skip


def measures_of(loss: LossName) -> tuple[str, ...]:
    """The `MEASURES` that a loss has: without a reference there is no distance from it."""
    return MEASURES[:-1] if loss in WITHOUT_REFERENCE else MEASURES


def preference_loss(model: Decoder, examples: PairExamples, *, loss: LossName, settings: Settings) -> Measured:
    """The loss of some pairs, summed over them, and the sums of `measures_of` it.

    kl: of what the reference says of both answers less what the policy says, half of it each: an estimate of
    KL(ref || pi) where the answers are the reference's own, in nats an answer.
    Raises `ValueError` where the loss has a reference and nobody has said what that says of the pairs.
    """
    if examples.reference is None and loss not in WITHOUT_REFERENCE:
        raise ValueError(f"the loss {loss} needs what the reference says: give the pairs their `reference` first")
    compared = compare_answers(model, examples)
    chosen, rejected = rewards(loss, compared, settings.beta)
    sums = (
        chosen, rejected, chosen - rejected, (chosen > rejected).float(), compared.chosen, compared.rejected,
        -(compared.chosen_ratio + compared.rejected_ratio) / 2,
    )  # fmt: skip
    return Measured(
        LOSSES[loss](compared, settings).sum(),
        {name: value.detach().sum() for name, value in zip(MEASURES, sums, strict=True) if name in measures_of(loss)},
    )


def compare_answers(model: Decoder, examples: PairExamples) -> Compared:
    """What the policy says of both answers of each pair, beside what the reference said."""
    values = target_log_probs(model, examples.tokens, examples.targets, examples.batch)  # of every answer's tokens
    found = by_answer(values, examples)
    tokens = by_answer(torch.ones_like(values), examples)
    reference = torch.zeros_like(found) if examples.reference is None else examples.reference[:, :2]
    return Compared(*found.unbind(1), *reference.unbind(1), *tokens.unbind(1))


def by_answer(values: Tensor, examples: PairExamples) -> Tensor:
    """Sums over the tokens of each answer: (N,) -> (P, 2)."""
    return sum_by_sequence(values, examples.targets, examples.batch, examples.sequences).view(-1, 2)


@dataclass(frozen=True, slots=True)
class Preferences:
    """One batch of pairs a step. held: pairs that are not learnt from, measured at the evaluations of the recipe."""

    pairs: Pairs
    recipe: LossRecipe
    held: Pairs | None = None

    def step(self, trainer: Trainer, number: int) -> Moved:
        settings = self.recipe.settings
        if self.recipe.loss == "kto":
            settings = replace(settings, kl=self._distance(trainer, number))
        moved = self._supervised(settings).step(trainer, number)
        measures = dict(moved.measures)
        if self.recipe.loss == "kto":
            measures["kl"] = settings.kl
        train = trainer.recipe.train
        if self.held is not None and (number % train.evaluate_every == 0 or number == trainer.steps):
            found = evaluate_pairs(
                trainer.model, self.held, self.recipe, train.evaluate_rows, train.micro_batch or train.batch,
                trainer.setting.autocast,
            )  # fmt: skip
            measures |= {f"validation_{name}": value for name, value in found.items()}
        return replace(moved, measures=measures)

    def preflight(self, trainer: Trainer) -> None:
        self._supervised(self.recipe.settings).preflight(trainer)

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        pass

    def _supervised(self, settings: Settings) -> Supervised:
        objective = partial(preference_loss, loss=self.recipe.loss, settings=settings)
        return Supervised(self.pairs, objective, measures_of(self.recipe.loss))

    @torch.no_grad()
    def _distance(self, trainer: Trainer, number: int) -> float:
        """KTO's z_0 of a step's whole batch, however it is parted: the same for every micro-batch and process."""
        batch = trainer.recipe.train.batch
        share = trainer.ranks.share(range((number - 1) * batch, number * batch))
        together = trainer.recipe.train.micro_batch or batch
        numbers = self.pairs.read(share).numbers.numpy()
        trainer.model.eval()
        sums = distance_sums(trainer.model, self.pairs, numbers, together, trainer.setting.autocast)
        trainer.model.train()
        return distance(*trainer.ranks.sum(sums).tolist())


def distance(nats: float, count: float) -> float:
    """KTO's z_0."""
    # z_0 = max(0, mean over pairs of log pi(y' | x) / ref(y' | x))        (Ethayarajh et al. 2024, section 4.1)
    return max(0.0, nats / max(count, 1))


@torch.no_grad()
def distance_sums(model: Decoder, pairs: Pairs, numbers: Ints, together: int, autocast: torch.dtype | None) -> Tensor:
    """The log-ratios of answers to other prompts, summed over these pairs, in nats; and the count of pairs: (2,)."""
    assert pairs.reference is not None
    sums = torch.zeros(2, device=model.device)
    with torch.compiler.set_stance("force_eager"):  # shapes that training has not
        for start in range(0, len(numbers), together):
            part = numbers[start : start + together]
            reference = torch.from_numpy(pairs.reference[part, 2]).to(sums.device)
            found = other_log_probs(model, pairs, part, autocast)
            sums += torch.stack([(found - reference).sum(), torch.tensor(float(len(part)), device=sums.device)])
    return sums


@torch.no_grad()
def evaluate_pairs(
    model: Decoder, pairs: Pairs, recipe: LossRecipe, rows: int, together: int, autocast: torch.dtype | None = None
) -> dict[str, float]:
    """The loss and the means of its measures over the first `rows` rows; every process computes all of them.

    For KTO z_0, which is its `kl`, is that of these pairs, as a step's is that of its batch.
    """
    training = model.training
    model.eval()
    names = measures_of(recipe.loss)
    sums = torch.zeros(1 + len(names), dtype=torch.float64)
    count = 0
    settings = recipe.settings
    if recipe.loss == "kto":
        numbers = pairs.read(range(min(rows, len(pairs)))).numbers.numpy()
        settings = replace(settings, kl=distance(*distance_sums(model, pairs, numbers, together, autocast).tolist()))
    objective = partial(preference_loss, loss=recipe.loss, settings=settings)
    with torch.compiler.set_stance("force_eager"):
        for start in range(0, min(rows, len(pairs)), together):
            examples = pairs.read(range(start, min(start + together, rows, len(pairs)))).to(model.device)
            with torch.autocast(model.device.type, autocast, enabled=autocast is not None):
                found = objective(model, examples)
            sums += torch.stack([found.total, *found.sums.values()]).double().cpu()
            count += examples.supervised
    model.train(training)
    means = dict(zip(("loss", *names), (sums / count).tolist(), strict=True))
    return means | ({"kl": settings.kl} if recipe.loss == "kto" else {})
