"""Cross-entropy of the next token, without ever holding the logits of a whole batch (promise D4).

The head and the loss are computed for a chunk of tokens at a time, and their gradients with them, so that a chunk's
logits can be forgotten at once. Nothing is computed twice.

N tokens that are learnt from, E hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pellucid.data.examples import IGNORE, Examples
from pellucid.models.decoder import Decoder
from pellucid.operations import softmax

CHUNK = 1 << 22  # logits at a time: 16 MB in float32
ROWS = 256  # tokens at a time, at least: the head's gradient, as large as the head, is read and written once a chunk


def next_token_loss(model: Decoder, examples: Examples) -> Tensor:
    """-sum log p(target | tokens before it), in nats, over the targets that are learnt from; a scalar in float32."""
    hidden = model.hidden(examples.tokens, examples.batch)  # (B, T, E)
    learnt = examples.targets != IGNORE
    return cross_entropy(hidden[learnt], model.head_weight, examples.targets[learnt], model.config.logit_softcap)


def cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None = None) -> Tensor:
    """The sum over tokens of -log softmax(hidden weight^T)[target].

    hidden: (N, E); weight: (V, E); targets: (N,) int64. Under autocast the products are computed in its type, the
    softmax always in float32.
    """
    if not torch.is_grad_enabled():
        weight = weight.detach()  # a Function is told that a parameter wants a gradient even then
    loss: Tensor = _CrossEntropy.apply(hidden, weight, targets, softcap)  # type: ignore[no-untyped-call]
    return loss


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None) -> Tensor:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        narrow = weight.to(dtype)
        rows = max(ROWS, CHUNK // len(weight))
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        loss = torch.zeros((), device=hidden.device)
        to_hidden = torch.empty_like(hidden) if wants_hidden else None
        to_weight = torch.zeros_like(weight) if wants_weight else None
        with torch.autocast(device, enabled=False):
            for start in range(0, len(hidden), rows):
                part = hidden[start : start + rows].to(dtype)
                losses, to_logits = softmax_loss(part @ narrow.T, targets[start : start + rows], softcap)
                loss += losses.sum()
                if to_hidden is not None:
                    to_hidden[start : start + rows] = to_logits @ narrow
                if to_weight is not None:
                    to_weight += to_logits.T @ part
        ctx.save_for_backward(to_hidden, to_weight)
        return loss

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        to_hidden, to_weight = ctx.saved_tensors
        return (
            None if to_hidden is None else to_hidden * scale,
            None if to_weight is None else to_weight * scale,
            None,
            None,
        )


def softmax_loss(logits: Tensor, targets: Tensor, softcap: float | None) -> tuple[Tensor, Tensor]:
    """logits: (n, V), which may be overwritten; targets: (n,).

    Returns the losses (n,), float32, and their gradient with respect to the logits, (n, V) in the logits' type.
    """
    # L = log sum_v exp(z_v) - z_target;  dL/dz = softmax(z) - onehot(target)
    if softcap is None:
        return softmax.cross_entropy(logits, targets)
    squeezed = torch.tanh(logits.float() / softcap)
    losses, gradient = softmax.cross_entropy(softcap * squeezed, targets)
    return losses, (gradient * (1 - squeezed**2)).to(logits.dtype)  # d(c tanh(x / c)) / dx = 1 - tanh^2
