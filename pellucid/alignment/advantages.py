"""How much better than expected: what a token's chance is raised or lowered by. Pure functions of tensors.

S answers, L tokens of the longest; a mask (S, L) says which places are tokens, the first of each answer at the left.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

TINY = 1e-4  # beside a standard deviation: a group whose rewards hardly differ is not blown up


# A_i = (r_i - mean(r)) / std(r)  over the answers to one prompt (Shao et al. 2024, section 4.1.2);
# without the quotient, which favours prompts whose answers hardly differ: Liu et al. 2025 (Dr. GRPO), section 3.2
def group_advantages(rewards: Tensor, *, scaled: bool) -> Tensor:
    """rewards: (prompts, answers) -> (prompts, answers). scaled: divide by the standard deviation of the group."""
    centred = rewards - rewards.mean(-1, keepdim=True)
    return centred / (rewards.std(-1, keepdim=True) + TINY) if scaled else centred


# d_t = r_t + g V_{t+1} - V_t;  A_t = d_t + g l A_{t+1}  (Schulman et al. 2016, equations 11 and 16);  V = 0 at the end
def generalised_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, discount: float, trace: float
) -> tuple[Tensor, Tensor]:
    """The advantages, and the returns A + V that the value model learns; all (S, L), 0 outside of `mask`."""
    rewards, values = rewards * mask, values * mask
    following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], 1)
    errors = rewards + discount * following - values
    advantages = torch.zeros_like(values)
    last = torch.zeros_like(values[:, 0])
    for place in reversed(range(values.shape[1])):
        last = (errors[:, place] + discount * trace * last) * mask[:, place]
        advantages[:, place] = last
    return advantages, (advantages + values) * mask


def whiten(
    values: Tensor, mask: Tensor, add: Callable[[Tensor], Tensor] = lambda own: own, *, shift: bool = True
) -> Tensor:
    """Variance 1 over the places of `mask`, and mean 0 unless `shift` is off; 0 elsewhere.

    add: gives the sum over all processes, whose values are whitened together.
    """
    inside = values[mask].double()
    count, total = add(torch.stack([inside.new_tensor(float(len(inside))), inside.sum()])).tolist()
    mean = total / max(count, 1.0)
    variance = float(add(((inside - mean) ** 2).sum())) / max(count - 1, 1.0)
    white = (values - mean) * (variance + 1e-8) ** -0.5
    return (white if shift else white + mean).where(mask, torch.zeros_like(values))
