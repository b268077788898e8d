"""Losses on pairs of answers, each a pure function of log-probabilities, one number a pair.

x prompt, y_w the better answer, y_l the worse one; pi the policy, ref the reference. P pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LossName = Literal["sigmoid", "ipo", "hinge", "robust", "conservative", "simpo", "orpo", "kto"]
WITHOUT_REFERENCE = ("simpo", "orpo")


class Compared(NamedTuple):
    """What a loss is a function of; all (P,), log-probabilities summed over the tokens of an answer, in nats.

    chosen, rejected: log pi(y_w | x) and log pi(y_l | x). reference_chosen, reference_rejected: the same of ref; zeros
    where the loss has no reference. chosen_tokens, rejected_tokens: |y_w| and |y_l|.
    """

    chosen: Tensor
    rejected: Tensor
    reference_chosen: Tensor
    reference_rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor

    @property
    def chosen_ratio(self) -> Tensor:
        """log pi(y_w | x) / ref(y_w | x)."""
        return self.chosen - self.reference_chosen

    @property
    def rejected_ratio(self) -> Tensor:
        """log pi(y_l | x) / ref(y_l | x)."""
        return self.rejected - self.reference_rejected

    @property
    def margin(self) -> Tensor:
        """h = log pi(y_w | x) / ref(y_w | x) - log pi(y_l | x) / ref(y_l | x)."""
        return self.chosen_ratio - self.rejected_ratio


@dataclass(frozen=True, slots=True)
class Settings:
    """The numbers in the losses. beta: of all (IPO's tau, ORPO's lambda). smoothing: the probability that a pair is the
    wrong way round, of robust and conservative. margin: SimPO's gamma. weights: KTO's of good and of bad answers.
    kl: KTO's point of reference z_0, of the batch, in nats."""

    beta: float = 0.1
    smoothing: float = 0.0
    margin: float = 0.5
    weights: tuple[float, float] = (1.0, 1.0)
    kl: float = 0.0


def sigmoid(c: Compared, s: Settings) -> Tensor:
    """DPO (Rafailov et al. 2023, eq. 7)."""
    # L = - log sigma(beta h)
    return -F.logsigmoid(s.beta * c.margin)


def ipo(c: Compared, s: Settings) -> Tensor:
    """IPO (Azar et al. 2024, eq. 17). The log-ratios are means over tokens, as in the authors' experiments: sums would
    ask of long answers the same distance in all as of short ones."""
    # L = (h - 1 / (2 tau))^2
    h = c.chosen_ratio / c.chosen_tokens - c.rejected_ratio / c.rejected_tokens
    return (h - 1 / (2 * s.beta)) ** 2


def hinge(c: Compared, s: Settings) -> Tensor:
    """The hinge loss of SLiC (Zhao et al. 2023) on DPO's margin, as RSO has it (Liu et al. 2024)."""
    # L = max(0, 1 - beta h)
    return F.relu(1 - s.beta * c.margin)


def conservative(c: Compared, s: Settings) -> Tensor:
    """Conservative DPO: the cross-entropy with a label that is right with probability 1 - e (Mitchell 2023)."""
    # L = - (1 - e) log sigma(beta h) - e log sigma(-beta h)
    return -(1 - s.smoothing) * F.logsigmoid(s.beta * c.margin) - s.smoothing * F.logsigmoid(-s.beta * c.margin)


def robust(c: Compared, s: Settings) -> Tensor:
    """Robust DPO: its mean over labels that were turned round with probability e is DPO's loss on the true ones
    (Chowdhury et al. 2024)."""
    # L = (- (1 - e) log sigma(beta h) + e log sigma(-beta h)) / (1 - 2 e)
    clean, turned = F.logsigmoid(s.beta * c.margin), F.logsigmoid(-s.beta * c.margin)
    return (-(1 - s.smoothing) * clean + s.smoothing * turned) / (1 - 2 * s.smoothing)


def simpo(c: Compared, s: Settings) -> Tensor:
    """SimPO (Meng et al. 2024, eq. 6): no reference, and the mean over tokens in place of the sum."""
    # L = - log sigma(beta / |y_w| log pi(y_w | x) - beta / |y_l| log pi(y_l | x) - gamma)
    return -F.logsigmoid(s.beta * (c.chosen / c.chosen_tokens - c.rejected / c.rejected_tokens) - s.margin)


def orpo(c: Compared, s: Settings) -> Tensor:
    """ORPO (Hong et al. 2024, eq. 4, 6 and 7): supervised learning of y_w, and the odds of y_w against y_l."""
    # P(y | x) = exp(1 / |y| log pi(y | x)),   odds = P / (1 - P)
    # L = - log P(y_w | x) - lambda log sigma(log odds(y_w | x) - log odds(y_l | x))
    chosen, rejected = c.chosen / c.chosen_tokens, c.rejected / c.rejected_tokens
    odds = (chosen - log1m_exp(chosen)) - (rejected - log1m_exp(rejected))
    return -chosen - s.beta * F.logsigmoid(odds)


def kto(c: Compared, s: Settings) -> Tensor:
    """KTO (Ethayarajh et al. 2024, eq. 7), the mean over the two answers of a pair, one good and one bad."""
    # v(x, y_w) = w_D sigma(beta (log ratio - z_0)),   v(x, y_l) = w_U sigma(beta (z_0 - log ratio)),   L = w - v
    good, bad = s.weights
    chosen = good * (1 - torch.sigmoid(s.beta * (c.chosen_ratio - s.kl)))
    rejected = bad * (1 - torch.sigmoid(s.beta * (s.kl - c.rejected_ratio)))
    return (chosen + rejected) / 2


LOSSES: dict[LossName, Callable[[Compared, Settings], Tensor]] = {
    "sigmoid": sigmoid,
    "ipo": ipo,
    "hinge": hinge,
    "robust": robust,
    "conservative": conservative,
    "simpo": simpo,
    "orpo": orpo,
    "kto": kto,
}


def rewards(loss: LossName, c: Compared, beta: float) -> tuple[Tensor, Tensor]:
    """The rewards of y_w and y_l that a policy stands for, (P,) each, up to a number that depends on x alone."""
    if loss in WITHOUT_REFERENCE:  # SimPO, eq. 4
        return beta * c.chosen / c.chosen_tokens, beta * c.rejected / c.rejected_tokens
    # r(x, y) = beta log pi(y | x) / ref(y | x)        (Rafailov et al. 2023, eq. 5)
    return beta * c.chosen_ratio, beta * c.rejected_ratio


def log1m_exp(x: Tensor) -> Tensor:
    """log(1 - e^x), x < 0, without loss of digits near 0 and far from it (Maechler 2012, eq. 7)."""
    x = x.clamp(max=-torch.finfo(x.dtype).tiny)  # an answer that is certain has infinite odds
    near = x > -math.log(2)
    # Each branch gets an argument that it can bear, since the gradient of both is computed.
    return torch.where(
        near,
        torch.log(-torch.expm1(torch.where(near, x, -1.0))),
        torch.log1p(-torch.exp(torch.where(near, -1.0, x))),
    )
