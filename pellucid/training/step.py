"""One step of training: the gradient of a batch, summed over its tokens and divided once.

Whatever way a batch is cut, over micro-batches or processes, the loss and the gradient are the same (promise D2): the
tokens that are learnt from are counted first, over all of the batch, and every part's sum is divided by that number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pellucid.data.examples import BatchOfRows
from pellucid.models.decoder import Decoder
from pellucid.training.ranks import Ranks


class Measured(NamedTuple):
    """The loss of some rows, summed over the units that the batch's loss is the mean of, and other such sums."""

    total: Tensor  # a scalar
    sums: Mapping[str, Tensor]


Objective = Callable[[Decoder, Any], Tensor | Measured]  # of some rows: the loss, summed over tokens, pairs ...


@dataclass(frozen=True, slots=True)
class Gradient:
    """What a batch's gradient was taken at.

    loss: the mean over `learnt` units (tokens, pairs), in nats. real: tokens that are no padding. norm: of the
    gradient, not clipped. measures: the means of what else the objective summed up.
    """

    loss: float
    learnt: int
    real: int
    norm: float
    measures: Mapping[str, float] = field(default_factory=dict)


def take_gradient(
    model: Decoder,
    examples: BatchOfRows | None,
    objective: Objective,
    *,
    micro_batch: int | None = None,
    autocast: torch.dtype | None = None,
    ranks: Ranks | None = None,
    measures: Sequence[str] = (),
    trained: nn.Module | None = None,
) -> Gradient:
    """Puts the gradient of a batch's mean loss into the parameters' `.grad`.

    examples: this process's rows of the batch (None: it has none), which are taken `micro_batch` at a time.
    autocast: the type of products, where it is not that of the weights. measures: the names of the sums that the
    objective gives beside the loss. trained: what has the parameters, where that is more than the model.
    """
    ranks = ranks or Ranks()
    device = model.device
    counts = torch.tensor([0, 0] if examples is None else [examples.supervised, examples.real], device=device)
    learnt, real = ranks.sum(counts).tolist()
    sums = torch.zeros(1 + len(measures), device=device)  # the loss, then the measures
    if examples is not None:
        for part in examples.split(micro_batch or len(examples.tokens)):
            with torch.autocast(device.type, autocast, enabled=autocast is not None):
                found = objective(model, part)
            total, beside = found if isinstance(found, Measured) else (found, {})
            (total / max(learnt, 1)).backward()
            sums += torch.stack([total.detach(), *(beside[name].detach() for name in measures)])
    parameters = list((trained or model).parameters())
    ranks.sum_gradients(parameters)
    loss, *means = (ranks.sum(sums) / max(learnt, 1)).tolist()
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return Gradient(loss, learnt, real, float(norm), dict(zip(measures, means, strict=True)))


def clip(model: nn.Module, norm: float, largest: float) -> None:
    """Scales the gradient, of this norm, down to `largest` where it is above (Pascanu et al. 2013, algorithm 1)."""
    if norm > largest:
        torch._foreach_mul_([p.grad for p in model.parameters() if p.grad is not None], largest / norm)
