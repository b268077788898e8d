"""How much a model's answers to old text depend on its weights: the Fisher information.

    F(w) = E over x of E over y ~ p_w(. | x) of  grad log p_w(y | x)  grad log p_w(y | x)^T

It is the curvature of what the model says: KL(p_w || p_{w+d}) = 1/2 d^T F d + O(|d|^3), so it is also the metric tensor
that pulls the distance between outputs back to the weights. The tokens y are drawn from the model itself, as the
definition has it, not taken from the text, which would give another matrix (the "empirical Fisher"). Kirkpatrick et al.
(2017) do not say what they did; van de Ven (2025, "On the computation of the Fisher information in continual learning")
compares the ways. Drawing has a second merit: given the text, what is drawn at one place does not depend on what is
drawn at another, and every score has mean zero, so

    E (sum over t of s_t) (sum over t of s_t)^T = sum over t of E s_t s_t^T,      s_t = grad log p_w(y_t | x_<t)

and one gradient of a whole row is as good as one for each token of it.

N tokens, E hidden size, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pellucid.data.examples import IGNORE, Examples, Rows
from pellucid.data.order import random_number
from pellucid.models.decoder import Decoder
from pellucid.training.loss import ROWS, cross_entropy
from pellucid.training.ranks import Ranks


def trained(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that are moved."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def score(model: Decoder, row: Examples, seed: int) -> tuple[tuple[Tensor, ...], int]:
    """grad of sum over t of -log p(y_t | x_<t), y drawn by `seed`, a tensor for each of `trained`; how many t.

    It leaves the parameters' `.grad` alone. Dropout is off meanwhile.
    """
    training = model.training
    model.eval()
    try:
        hidden = model.hidden(row.tokens, row.batch)[row.targets != IGNORE]  # (N, E)
        weight, softcap = model.head_weight, model.config.logit_softcap
        surprise = cross_entropy(hidden, weight, draw(hidden.detach(), weight.detach(), softcap, seed), softcap)
        return torch.autograd.grad(surprise, trained(model), materialize_grads=True), len(hidden)
    finally:
        model.train(training)


def draw(hidden: Tensor, weight: Tensor, softcap: float | None, seed: int) -> Tensor:
    """A token each from the model's own distributions. hidden: (N, E); weight: (V, E) -> (N,) int64."""
    generator = torch.Generator(hidden.device).manual_seed(seed)
    found = []
    for part in hidden.split(ROWS):
        logits = (part @ weight.T).float()
        logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
        found.append(torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0])
    return torch.cat(found)


def fisher_diagonal(model: Decoder, rows: Rows, numbers: range, seed: int, ranks: Ranks) -> list[Tensor]:
    """The diagonal of F, for a token, on the rows with these numbers: a tensor for each of `trained`.

    One gradient for each row, of which each process computes its share.
    """
    sums = [torch.zeros_like(parameter) for parameter in trained(model)]
    tokens = torch.zeros((), device=model.device)
    for number in ranks.share(numbers):
        row = rows.read([number]).to(model.device)
        gradients, here = score(model, row, random_number(1 << 63, "fisher", seed, number))
        torch._foreach_addcmul_(sums, gradients, gradients)
        tokens += here
    every = ranks.sum(tokens).clamp(min=1)
    return [ranks.sum(each) / every for each in sums]
