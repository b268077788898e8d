"""One step of training: the gradient of a batch, summed over its tokens and divided once.

Whatever way a batch is cut, over micro-batches or processes, the loss and the gradient are the same (promise D2): the
tokens that are learnt from are counted first, over all of the batch, and every part's sum is divided by that number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pellucid.data.examples import Examples
from pellucid.models.decoder import Decoder
from pellucid.training.ranks import Ranks

Objective = Callable[[Decoder, Examples], Tensor]  # the loss of some rows, summed over their tokens: a scalar


@dataclass(frozen=True, slots=True)
class Gradient:
    """What a batch's gradient was taken at.

    loss: the mean over `learnt` tokens, in nats. real: tokens that are no padding. norm: of the gradient, not clipped.
    """

    loss: float
    learnt: int
    real: int
    norm: float


def take_gradient(
    model: Decoder,
    examples: Examples | None,
    objective: Objective,
    *,
    micro_batch: int | None = None,
    autocast: torch.dtype | None = None,
    ranks: Ranks | None = None,
) -> Gradient:
    """Puts the gradient of a batch's mean loss into the parameters' `.grad`.

    examples: this process's rows of the batch (None: it has none), which are taken `micro_batch` at a time.
    autocast: the type of products, where it is not that of the weights.
    """
    ranks = ranks or Ranks()
    device = model.device
    counts = torch.tensor([0, 0] if examples is None else [examples.supervised, examples.real], device=device)
    learnt, real = ranks.sum(counts).tolist()
    loss = torch.zeros((), device=device)
    if examples is not None:
        for part in examples.split(micro_batch or len(examples.tokens)):
            with torch.autocast(device.type, autocast, enabled=autocast is not None):
                total = objective(model, part)
            (total / max(learnt, 1)).backward()
            loss += total.detach()
    ranks.sum_gradients(model.parameters())
    mean = ranks.sum(loss) / max(learnt, 1)
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    return Gradient(float(mean), learnt, real, float(norm))


def clip(model: Decoder, norm: float, largest: float) -> None:
    """Scales the gradient, of this norm, down to `largest` where it is above (Pascanu et al. 2013, algorithm 1)."""
    if norm > largest:
        torch._foreach_mul_([p.grad for p in model.parameters() if p.grad is not None], largest / norm)
