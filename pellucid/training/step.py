"""One step of training: the gradient of a batch, summed over its tokens and divided once, and what it cost.

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
    """What the gradient of a batch was taken at. loss: the mean over `tokens`, in nats. norm: before clipping."""

    loss: float
    tokens: int
    norm: float


def take_gradient(
    model: Decoder,
    examples: Examples | None,
    objective: Objective,
    *,
    micro_batch: int | None,
    autocast: torch.dtype | None,
    ranks: Ranks,
) -> Gradient:
    """The mean loss's gradient over the batch, of which `examples` are this process's rows (None: it has none), in
    the parameters' `.grad`."""
    mine = 0 if examples is None else examples.supervised
    tokens = int(ranks.sum(torch.tensor(mine)))
    loss = torch.zeros((), device=model.embedding.weight.device)
    if examples is not None:
        for part in examples.split(micro_batch or len(examples.tokens)):
            with torch.autocast(loss.device.type, autocast, enabled=autocast is not None):
                total = objective(model, part)
            (total / max(tokens, 1)).backward()
            loss += total.detach()
    ranks.sum_gradients(model.parameters())
    loss = ranks.sum(loss) / max(tokens, 1)
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    return Gradient(float(loss), tokens, float(norm))


def clip(model: Decoder, norm: float, largest: float) -> None:
    """Scales the gradient of this norm down to `largest`, where it is above (Pascanu et al. 2013, algorithm 1)."""
    if norm > largest:
        torch._foreach_mul_([p.grad for p in model.parameters() if p.grad is not None], largest / norm)
