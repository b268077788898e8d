"""The distributions that rollouts are drawn from, for the gradient of those.

A rollout is drawn at a temperature t and, with top-p, from the nucleus alone (Holtzman et al. 2020, section 3.1):

    p(v) = e^(z_v / t) / sum over u in K of e^(z_u / t)    for v in K, else 0

K is fixed when the token is drawn: it is found once, at the weights that drew it, and kept as bits.

N tokens, E hidden size, D tokens of the vocabulary that can be drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pellucid.operations.bits import pack
from pellucid.training.log_probs import TokenLogProbs, chunks, log_probs_and_entropy, scaled


@dataclass(frozen=True, slots=True)
class Head:
    """What makes hidden states into a distribution. weight: (D, E); softcap: as in `ModelConfig`."""

    weight: Tensor
    temperature: float = 1.0
    softcap: float | None = None

    def log_probs(self, hidden: Tensor, targets: Tensor, kept: Tensor | None = None) -> TokenLogProbs:
        """ln p of each target, and the entropy of each distribution, in nats, (N,) each, differentiable.

        hidden: (N, E); targets: (N,); kept: as `nuclei` gives it; None: all D can be drawn.
        """
        return log_probs_and_entropy(hidden, self.weight, targets, self.softcap, self.temperature, kept)

    @torch.no_grad()
    def nuclei(self, hidden: Tensor, targets: Tensor, among: Tensor) -> Tensor:
        """The sets K: the `among` (N,) likeliest tokens of each distribution, the drawn one always with them.

        As bits: (N, D / 8, rounded up), uint8.
        """
        bits = []
        for part in chunks(len(hidden), len(self.weight)):
            products = hidden[part] @ self.weight.to(hidden.dtype).T
            scores = scaled(products, self.softcap, self.temperature)[0]  # (n, D)
            border = scores.topk(int(among[part].max())).values.gather(-1, among[part, None] - 1)
            bits.append(pack((scores >= border).scatter_(-1, targets[part, None], True)))
        return torch.cat(bits)
