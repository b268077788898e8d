"""What PPO and GRPO have in common: the clipped ratio, and estimates of the KL divergence. Pure functions of tensors.

All tensors are of one shape, one entry a token that was drawn; masks and means are the caller's.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Estimator = Literal["k1", "k2", "k3"]


# L = -min(r A, clip(r, 1 - e_low, 1 + e_high) A),  r = p_new / p_old
# (Schulman et al. 2017, equation 7; two sides of their own: Yu et al. 2025, equation 10)
def clipped_loss(
    log_probs: Tensor, old: Tensor, advantages: Tensor, low: float, high: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of each token; the ratio r; and whether the clipped side was the smaller one, so that no gradient flows.

    log_probs, old: ln p under the weights as they are and as they were when the token was drawn.
    """
    ratio = (log_probs - old).exp()
    free, clipped = ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages
    return -torch.minimum(free, clipped), ratio.detach(), (clipped < free).detach()


# KL(p || q) from draws of p, with r = q / p:  k1 = -ln r;  k2 = (ln r)^2 / 2;  k3 = (r - 1) - ln r
# (Schulman 2020, "Approximating KL divergence"). k1 and k3 have the right mean; k2 and k3 are never below 0.
def kl_estimate(log_probs: Tensor, reference: Tensor, kind: Estimator) -> Tensor:
    """An estimate of the divergence of the policy from the reference at each token, in nats."""
    log_ratio = reference - log_probs
    if kind == "k1":
        return -log_ratio
    if kind == "k2":
        return log_ratio**2 / 2
    return log_ratio.expm1() - log_ratio
