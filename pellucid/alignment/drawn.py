"""How likely a policy makes tokens in the distribution that they were drawn from, for the gradient of that.

A rollout is drawn at a temperature t and, with top-p, from the nucleus alone (Holtzman et al. 2020, section 3.1):

    p(v) = e^(z_v / t) / sum over u in K of e^(z_u / t)    for v in K, else 0

K is fixed when the token is drawn: it is found once, at the weights that drew it, and kept as bits. The head runs for a
few tokens at a time, forward and again backward, so that the logits never stand whole in memory (promise D4).

N tokens, n of them at a time, E hidden size, D tokens of the vocabulary that can be drawn.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pellucid.inference import filters
from pellucid.operations import softmax
from pellucid.training.loss import CHUNK, ROWS


@dataclass(frozen=True, slots=True)
class Head:
    """What makes hidden states into a distribution. weight: (D, E); softcap: as in `ModelConfig`."""

    weight: Tensor
    temperature: float = 1.0
    softcap: float | None = None

    def scores(self, hidden: Tensor) -> Tensor:
        """hidden: (n, E), of the type of the products -> z / t, (n, D), float32."""
        logits = (hidden @ self.weight.to(hidden.dtype).T).float()
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits / self.temperature if self.temperature != 1 else logits

    def backward(self, to_scores: Tensor, scores: Tensor) -> Tensor:
        """The gradient with respect to `scores` -> that with respect to the products, (n, D)."""
        to_logits = to_scores / self.temperature
        if self.softcap is not None:  # d(c tanh(x / c)) / dx = 1 - tanh^2
            to_logits *= 1 - (scores * self.temperature / self.softcap) ** 2
        return to_logits


def drawn_log_probs(hidden: Tensor, targets: Tensor, head: Head, kept: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """ln p of each target, (N,), and the entropy of each distribution, in nats, (N,): float32, differentiable.

    hidden: (N, E); targets: (N,); kept: (N, bytes), uint8, as `nuclei` gives them; None: all D can be drawn.
    """
    log_probs, entropies = _Drawn.apply(hidden, head.weight, targets, head, kept)  # type: ignore[no-untyped-call]
    return log_probs, entropies


@torch.no_grad()
def nuclei(hidden: Tensor, targets: Tensor, head: Head, among: Tensor) -> Tensor:
    """The sets K: the `among` (N,) likeliest tokens of each distribution, the drawn one always with them.

    As bits, lowest first: (N, bytes of D bits), uint8.
    """
    bits = []
    for part in _parts(len(hidden), len(head.weight)):
        scores = head.scores(_narrow(hidden[part]))
        most = int(among[part].max())
        border = scores.topk(most).values.gather(-1, among[part, None] - 1)
        inside = (scores >= border).scatter_(-1, targets[part, None], True)
        bits.append(torch.from_numpy(np.packbits(inside.cpu().numpy(), axis=-1, bitorder="little")))
    return torch.cat(bits).to(hidden.device)


class _Drawn(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, head: Head, kept: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        log_probs = torch.empty(len(hidden), device=hidden.device)
        entropies = torch.empty_like(log_probs)
        for part in _parts(len(hidden), len(weight)):
            scores = _within(head.scores(_narrow(hidden[part])), kept, part)
            losses, shares = softmax.cross_entropy(scores.clone(), targets[part])  # -ln p, p - onehot(target)
            log_probs[part] = -losses
            # H = ln sum e^z - sum p z = (ln sum e^z - z_target) - sum (p - onehot) z
            entropies[part] = losses - (shares * scores.nan_to_num_(neginf=0.0)).sum(-1)
        ctx.save_for_backward(hidden, targets, kept)
        ctx.head, ctx.dtype = head, _narrow(hidden[:0]).dtype  # autocast is over when backward runs
        return log_probs, entropies

    @staticmethod
    def backward(ctx: Any, *to: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        hidden, targets, kept = ctx.saved_tensors
        weight = ctx.head.weight
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        to_hidden = torch.empty_like(hidden) if wants_hidden else None
        to_weight = torch.zeros_like(weight) if wants_weight else None
        for part in _parts(len(hidden), len(weight)):
            narrow = hidden[part].to(ctx.dtype)
            scores = ctx.head.scores(narrow)
            to_scores = _to_scores(_within(scores, kept, part), targets[part], to[0][part], to[1][part])
            to_logits = ctx.head.backward(to_scores, scores).to(narrow.dtype)
            if to_hidden is not None:
                to_hidden[part] = to_logits @ weight.to(narrow.dtype)
            if to_weight is not None:
                to_weight += to_logits.T @ narrow
        return to_hidden, to_weight, None, None, None


def _to_scores(scores: Tensor, targets: Tensor, to_log_probs: Tensor, to_entropies: Tensor) -> Tensor:
    """The gradient with respect to `scores` (n, D): of ln p and H, from theirs (n,)."""
    _, shares = softmax.cross_entropy(scores.clone(), targets)
    # d ln p_target / dz = onehot - p
    to_scores = -to_log_probs[:, None] * shares
    if bool(to_entropies.any()):
        # dH / dz = -p (ln p + H)
        logs = scores.log_softmax(-1)
        surprise = (logs.exp() * logs).nan_to_num_(0.0)  # p ln p, 0 where p is 0
        entropies = -surprise.sum(-1, keepdim=True)
        to_scores -= to_entropies[:, None] * (surprise + logs.exp() * entropies)
    return to_scores


def _within(scores: Tensor, kept: Tensor | None, part: slice) -> Tensor:
    """-inf outside of K."""
    return scores if kept is None else filters.allow(scores, kept[part])


def _narrow(hidden: Tensor) -> Tensor:
    """In the type of the products, as autocast has it."""
    device = hidden.device.type
    return hidden.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else hidden


def _parts(tokens: int, vocabulary: int) -> Iterator[slice]:
    rows = max(ROWS, CHUNK // vocabulary)
    for start in range(0, tokens, rows):
        yield slice(start, min(start + rows, tokens))
