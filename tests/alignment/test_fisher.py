"""The Fisher information: its definition by brute force, what it says of the KL divergence, and its shares."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from pellucid.alignment import fisher
from pellucid.alignment.fisher import draw, fisher_diagonal, score, trained
from pellucid.data.examples import IGNORE, Examples
from pellucid.data.order import random_number
from pellucid.layers.batch import PADDING
from pellucid.models.config import ModelConfig
from pellucid.models.decoder import Decoder
from pellucid.training.ranks import Ranks

pytestmark = pytest.mark.usefixtures("one_thread")
V, T = 5, 4


def tiny(softcap: float | None = None) -> Decoder:
    """A model of a few hundred parameters whose distributions are far from flat."""
    config = ModelConfig(
        vocab_size=V, hidden_size=8, num_layers=1, num_heads=2, intermediate_size=8, max_positions=16,
        logit_softcap=softcap,
    )  # fmt: skip
    model = Decoder(config, seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.dim() > 1 else 1)
    return model.requires_grad_(True)


@dataclass(frozen=True)
class Drawn:
    """Rows of tokens that stand for old text: two documents a row, the last place padding."""

    context: int = T

    def __len__(self) -> int:
        return 12

    def read(self, indices: Sequence[int]) -> Examples:
        tokens = torch.tensor([[(7 * number + 3 * t) % V for t in range(T)] for number in indices])
        targets = torch.tensor([[1, IGNORE, IGNORE if number % 2 else 2, IGNORE] for number in indices])
        positions = torch.tensor([[0, 1, 0, 1]] * len(indices))
        documents = torch.tensor([[0, 0, 1, PADDING]] * len(indices))
        return Examples(tokens, targets, positions, documents)


def whole_row() -> Examples:
    """One row with three tokens to predict."""
    tokens = torch.tensor([[0, 3, 1, 4]])
    return Examples(tokens, torch.tensor([[3, 1, 4, IGNORE]]), torch.arange(T)[None], torch.zeros(1, T, dtype=int))


def log_probabilities(model: Decoder, row: Examples) -> Tensor:
    """(N, V), of the places that have a token to predict."""
    return model(row.tokens, row.batch)[row.targets != IGNORE].log_softmax(-1)


def brute_force(model: Decoder, row: Examples) -> Tensor:
    """F, (P, P), the sum over places of E over y of s s^T, by the definition: a gradient for each place and token."""
    found = torch.zeros(sum(p.numel() for p in trained(model)), 0)
    for place in range(int((row.targets != IGNORE).sum())):
        for y in range(V):
            log_p = log_probabilities(model, row)[place, y]
            gradient = torch.cat([g.flatten() for g in torch.autograd.grad(log_p, trained(model))])
            found = torch.cat([found, (log_p.detach() / 2).exp() * gradient[:, None]], dim=1)
    return found @ found.T


@pytest.mark.parametrize("softcap", [None, 1.5])
def test_the_expected_square_of_a_rows_score_is_the_fisher_information(
    softcap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over all that could be drawn, by its probability. The products of different places cancel."""
    model, row = tiny(softcap), whole_row()
    log_p = log_probabilities(model, row).detach()
    expected = torch.zeros_like(brute_force(model, row))
    for drawn in itertools.product(range(V), repeat=len(log_p)):
        monkeypatch.setattr(fisher, "draw", lambda *_, given=drawn: torch.tensor(given))
        gradients, tokens = score(model, row, 0)
        assert tokens == 3
        flat = torch.cat([g.flatten() for g in gradients])
        probability = math.exp(sum(log_p[place, y].item() for place, y in enumerate(drawn)))
        expected += probability * torch.outer(flat, flat)
    exact = brute_force(model, row)
    # 125 terms, each a product of gradients that float32 rounds at every of some tens of layers' sums.
    torch.testing.assert_close(expected, exact, rtol=0, atol=1e-4 * exact.abs().max().item())
    labels = torch.autograd.grad(-log_probabilities(model, row)[range(3), [3, 1, 4]].sum(), trained(model))
    empirical = torch.cat([g.flatten() for g in labels]).square()
    assert (empirical - exact.diagonal()).abs().max() > 0.1 * exact.diagonal().max()


def test_it_is_the_curvature_of_what_the_model_says() -> None:
    """KL(p_w || p_{w+d}) = 1/2 d^T F d + O(|d|^3)."""
    model, row = tiny(), whole_row()
    exact, before = brute_force(model, row), log_probabilities(model, row).detach()
    step = torch.randn(len(exact), generator=torch.Generator().manual_seed(0))
    step *= 3e-3 / step.norm()
    expected = step @ exact @ step / 2
    with torch.no_grad():
        for parameter, part in zip(trained(model), step.split([p.numel() for p in trained(model)]), strict=True):
            parameter += part.view_as(parameter)
        after = log_probabilities(model, row)
    divergence = (before.double().exp() * (before.double() - after.double())).sum()
    assert divergence == pytest.approx(float(expected), rel=0.05)


def test_tokens_are_drawn_from_the_models_own_distribution() -> None:
    hidden = torch.tensor([[1.0, 0.0]]).expand(40_000, 2)
    weight = torch.tensor([[2.0, 0.0], [0.5, 1.0], [-1.0, 0.0]])
    for softcap, logits in ((None, torch.tensor([2.0, 0.5, -1.0])), (1.0, torch.tensor([2.0, 0.5, -1.0]).tanh())):
        p = logits.softmax(-1)
        counts = torch.bincount(draw(hidden, weight, softcap, 5), minlength=3)
        # Each count is binomial; six of its standard deviations.
        assert ((counts - 40_000 * p).abs() < 6 * (40_000 * p * (1 - p)).sqrt()).all()
    assert torch.equal(draw(hidden, weight, None, 5), draw(hidden, weight, None, 5))
    assert not torch.equal(draw(hidden, weight, None, 5), draw(hidden, weight, None, 6))


def test_the_diagonal_is_the_mean_square_of_the_scores() -> None:
    """Over rows of different numbers of tokens to predict, for a token."""
    model = tiny()
    squares, tokens = [], 0
    for number in range(3, 8):
        gradients, here = score(model, Drawn().read([number]), random_number(1 << 63, "fisher", 9, number))
        squares.append(torch.cat([g.flatten() for g in gradients]).square())
        tokens += here
    assert tokens == 1 + 2 + 1 + 2 + 1
    diagonal = flat(fisher_diagonal(model, Drawn(), range(3, 8), 9, Ranks()))
    torch.testing.assert_close(diagonal, torch.stack(squares).sum(0) / tokens)
    assert torch.equal(diagonal, flat(fisher_diagonal(model, Drawn(), range(3, 8), 9, Ranks())))
    assert not torch.equal(diagonal, flat(fisher_diagonal(model, Drawn(), range(3, 8), 10, Ranks())))


def flat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in parts])


def test_the_shares_of_several_processes_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process's part of the sums, as it would be sent; the totals are then divided by all tokens."""
    sent: list[Tensor] = []
    monkeypatch.setattr(Ranks, "sum", lambda ranks, value: sent.append(value.clone()) or value)
    model = tiny()
    parts = []
    for ranks in (Ranks(0, 3), Ranks(1, 3), Ranks(2, 3), Ranks()):
        sent.clear()
        fisher_diagonal(model, Drawn(), range(5), 0, ranks)
        parts.append([value.clone() for value in sent])
    *shares, whole = parts
    assert all(share[0] > 0 for share in shares)
    for found, expected in zip(zip(*shares, strict=True), whole, strict=True):
        torch.testing.assert_close(sum(found), expected)


def test_gradients_mode_and_what_is_frozen_are_left_alone() -> None:
    model = tiny().train()
    model.embedding.weight.requires_grad_(False)
    kept = [torch.full_like(parameter, 2.0) for parameter in trained(model)]
    for parameter, gradient in zip(trained(model), kept, strict=True):
        parameter.grad = gradient.clone()
    gradients, _ = score(model, whole_row(), 0)
    assert model.training and len(gradients) == len(kept) == len(list(model.parameters())) - 1
    assert all(torch.equal(p.grad, was) for p, was in zip(trained(model), kept, strict=True))
