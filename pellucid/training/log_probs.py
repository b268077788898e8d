"""How likely given tokens are, without ever holding the logits of a whole batch (promise D4).

    log p(x_t | x_<t) = z_t[x_t] - log sum_v exp(z_t[v]),      z = f(hidden weight^T) / temperature

where f is the soft cap, if the model has one. Unlike the sum of a loss, each of these has a gradient of its own that is
not known before all of them are, so a chunk's logits are computed again on the way back; where the head is not trained
(an adapter), what the way back needs is kept instead, which is no larger than `hidden`.

N tokens, E hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pellucid.data.examples import IGNORE
from pellucid.layers.batch import Batch
from pellucid.models.decoder import Decoder
from pellucid.operations.bits import unpack
from pellucid.training import loss

LOW = -1e30  # finite, so that p log p is 0 and not undefined


class TokenLogProbs(NamedTuple):
    """Of each of N tokens: the log-probability, and the entropy of the distribution that it comes from; in nats."""

    log_probs: Tensor  # (N,), float32
    entropy: Tensor  # (N,), float32


def token_log_probs(
    hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None = None, temperature: float = 1.0
) -> Tensor:
    """log softmax(f(hidden weight^T) / temperature)[target] of each token, (N,) in float32 (float64 stays).

    hidden: (N, E); weight: (V, E); targets: (N,) int64. Differentiable in `hidden` and `weight`. Under autocast the
    products are computed in its type, the softmax always in float32.
    """
    if not torch.is_grad_enabled():
        weight = weight.detach()  # a Function is told that a parameter wants a gradient even then
    found: Tensor = _LogProbs.apply(hidden, weight, targets, softcap, temperature, None, False)[0]  # type: ignore[no-untyped-call]
    return found


def log_probs_and_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    softcap: float | None = None,
    temperature: float = 1.0,
    kept: Tensor | None = None,
) -> TokenLogProbs:
    """As `token_log_probs`, and the entropy H = - sum_v p_v log p_v beside it, differentiable too.

    kept: (N, V / 8), the only tokens that each distribution has, as `operations.bits` packs them; None: all.
    """
    if not torch.is_grad_enabled():
        weight = weight.detach()
    return TokenLogProbs(*_LogProbs.apply(hidden, weight, targets, softcap, temperature, kept, True))  # type: ignore[no-untyped-call]


def sequence_log_probs(model: Decoder, tokens: Tensor, targets: Tensor, batch: Batch, sequences: Tensor) -> Tensor:
    """sum over t of log p(target_t) of each sequence, over the targets that are learnt from: (S,), in float32.

    tokens, targets: (B, T), as `data.examples.Examples` has them. sequences: (S, 2), the row of each sequence and its
    number among the documents of that row.
    """
    return sum_by_sequence(target_log_probs(model, tokens, targets, batch), targets, batch, sequences)


def target_log_probs(model: Decoder, tokens: Tensor, targets: Tensor, batch: Batch) -> Tensor:
    """The log-probability of each target that is learnt from, (N,) in the order in which they stand in the rows."""
    learnt = targets != IGNORE
    hidden = model.hidden(tokens, batch)[learnt]  # (N, E)
    return token_log_probs(hidden, model.head_weight, targets[learnt], model.config.logit_softcap)


def sum_by_sequence(values: Tensor, targets: Tensor, batch: Batch, sequences: Tensor) -> Tensor:
    """The sum of each sequence's values, (S,). values: (N,), one for each target that is learnt from."""
    documents = batch.documents
    assert documents is not None
    most = int(documents.max()) + 1
    number = torch.full((len(targets) * most,), len(sequences), device=values.device)  # of no sequence: a last, unused
    number[sequences[:, 0] * most + sequences[:, 1]] = torch.arange(len(sequences), device=values.device)
    row, place = (targets != IGNORE).nonzero(as_tuple=True)
    own = documents[row, place]
    whose = torch.where(own < 0, len(sequences), number[row * most + own])  # (N,); padding is of no sequence either
    return values.new_zeros(len(sequences) + 1).index_add(0, whose, values)[:-1]


class _LogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        softcap: float | None,
        temperature: float,
        kept: Tensor | None,
        entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        device = hidden.device.type
        ctx.dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        ctx.softcap, ctx.temperature, ctx.entropy = softcap, temperature, entropy
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        wide = torch.promote_types(hidden.dtype, torch.float32)
        found = torch.empty(len(hidden), dtype=wide, device=hidden.device)
        entropies = torch.empty(len(hidden) if entropy else 0, dtype=wide, device=hidden.device)
        # The gradient of the log-probability of each token with respect to its own row of `hidden`
        ctx.ahead = wants_hidden and not wants_weight and not entropy
        to_hidden = torch.empty_like(hidden) if ctx.ahead else None
        narrow = weight.to(ctx.dtype)
        with torch.autocast(device, enabled=False):
            for part in chunks(len(hidden), len(weight)):
                logits, slope = scaled(hidden[part].to(ctx.dtype) @ narrow.T, softcap, temperature)
                logits = within(logits, kept, part)
                if entropy:
                    found[part], entropies[part] = with_entropy(logits, targets[part])
                    continue
                losses, to_logits = loss.softmax_loss(logits, targets[part], None)
                found[part] = -losses
                if to_hidden is not None:
                    to_hidden[part] = before_scaling(to_logits, slope, temperature).to(ctx.dtype).neg_() @ narrow
        if ctx.ahead:
            ctx.save_for_backward(to_hidden)
        else:
            ctx.save_for_backward(hidden, weight, targets, kept)
        return found, entropies

    @staticmethod
    def backward(ctx: Any, to_log_probs: Tensor, to_entropy: Tensor) -> tuple[Tensor | None, ...]:
        rest = (None, None, None, None, None)
        if ctx.ahead:
            (to_hidden,) = ctx.saved_tensors
            return (to_hidden * to_log_probs[:, None]).to(to_hidden.dtype), None, *rest
        hidden, weight, targets, kept = ctx.saved_tensors
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        to_hidden = torch.empty_like(hidden) if wants_hidden else None
        to_weight = torch.zeros_like(weight) if wants_weight else None
        narrow = weight.to(ctx.dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            for part in chunks(len(hidden), len(weight)):
                inputs = hidden[part].to(ctx.dtype)
                logits, slope = scaled(inputs @ narrow.T, ctx.softcap, ctx.temperature)
                logits = within(logits, kept, part)
                gradient = to_scaled(
                    logits, targets[part], to_log_probs[part], to_entropy[part] if ctx.entropy else None
                )
                gradient = before_scaling(gradient, slope, ctx.temperature).to(ctx.dtype)
                if to_hidden is not None:
                    to_hidden[part] = gradient @ narrow
                if to_weight is not None:
                    to_weight += gradient.T @ inputs
        return to_hidden, to_weight, *rest


def chunks(tokens: int, vocabulary: int) -> list[slice]:
    """Parts of so many tokens, the logits of each of which may stand whole."""
    rows = max(loss.ROWS, loss.CHUNK // vocabulary)
    return [slice(start, min(start + rows, tokens)) for start in range(0, tokens, rows)]


def scaled(logits: Tensor, softcap: float | None, temperature: float) -> tuple[Tensor, Tensor | None]:
    """z = c tanh(x / c) / temperature, and dc tanh(x / c) / dx = 1 - tanh^2(x / c) where there is a soft cap."""
    slope = None
    if softcap is not None:
        squeezed = torch.tanh(logits.to(torch.promote_types(logits.dtype, torch.float32)) / softcap)
        logits, slope = softcap * squeezed, 1 - squeezed**2
    if temperature != 1:
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    return logits, slope


def within(logits: Tensor, kept: Tensor | None, part: slice) -> Tensor:
    """The logits z of some tokens, so low where they are not `kept` that p is 0."""
    return logits if kept is None else logits.masked_fill(~unpack(kept[part], logits.shape[-1]), LOW)


def before_scaling(gradient: Tensor, slope: Tensor | None, temperature: float) -> Tensor:
    """The gradient with respect to what `scaled` was given, from that with respect to what it gave."""
    gradient = gradient if slope is None else gradient * slope
    return gradient if temperature == 1 else gradient / temperature


def to_scaled(logits: Tensor, targets: Tensor, to_log_probs: Tensor, to_entropy: Tensor | None) -> Tensor:
    """The gradient with respect to z, (n, V), from those of the log-probabilities and entropies, (n,)."""
    if to_entropy is None:
        # d log p_x / dz = onehot(x) - softmax(z)
        gradient = loss.softmax_loss(logits, targets, None)[1]
        return gradient.mul_(-to_log_probs[:, None])
    log_p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    p = log_p.exp()
    # dH / dz_v = - p_v (log p_v + H)
    gradient = p * (log_p + entropy_of(log_p)[:, None]) * -to_entropy[:, None] - p * to_log_probs[:, None]
    return gradient.scatter_add_(-1, targets[:, None], to_log_probs[:, None].to(gradient.dtype))


def with_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    log_p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    return log_p.gather(-1, targets[:, None])[:, 0], entropy_of(log_p)


def entropy_of(log_p: Tensor) -> Tensor:
    """H = - sum_v p_v log p_v."""
    return -(log_p.exp() * log_p).sum(-1)
