"""Steps along a functionally invariant path: the dense formula, the paper's property, and what a model says."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pellucid.alignment.fisher import fisher_diagonal, trained
from pellucid.alignment.invariant import FRESH, InvariantPath, turn
from pellucid.data.examples import IGNORE, Examples
from pellucid.models.config import ModelConfig
from pellucid.models.decoder import Decoder
from pellucid.training.loss import next_token_loss
from pellucid.training.optimizers import Optimizers
from pellucid.training.ranks import Ranks
from tests.training.tiny_run import SHAPE, Counting

pytestmark = pytest.mark.usefixtures("one_thread")


def along(step: Sequence[Tensor], metric: Sequence[Tensor], strength: float) -> list[Tensor]:
    turned = [part.clone() for part in step]
    turn(turned, metric, strength)
    return turned


def drawn(seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """A step and a metric, of two tensors; its numbers differ by a factor of up to a million, and some are 0."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (3, 4), (5,)
    step = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    metric = [10 ** (6 * torch.rand(shape, generator=generator, dtype=torch.float64) - 3) for shape in shapes]
    metric[0][0] = 0
    return step, metric


def inner(one: list[Tensor], other: list[Tensor]) -> float:
    return float(sum((a * b).sum() for a, b in zip(one, other, strict=True)))


def moved_by(step: list[Tensor], metric: list[Tensor]) -> float:
    """d^T G d."""
    return inner(step, [d * G for d, G in zip(step, metric, strict=True)])


@given(st.integers(0, 10_000), st.floats(1e-3, 1e5))
def test_it_is_the_formula_and_moves_outputs_less(seed: int, strength: float) -> None:
    step, metric = drawn(seed)
    turned = along(step, metric, strength)
    G = torch.cat([part.flatten() for part in metric]).diag()
    dense = torch.eye(len(G), dtype=G.dtype) + strength / (G.trace() / len(G)) * G
    flat = torch.linalg.solve(dense, torch.cat([part.flatten() for part in step]))
    expected = flat * inner(step, step) ** 0.5 / flat.norm()
    torch.testing.assert_close(torch.cat([part.flatten() for part in turned]), expected)
    # Of equal length; and of equal progress down the gradient, where the step goes down it.
    assert inner(turned, turned) == pytest.approx(inner(step, step))
    assert moved_by(turned, metric) <= moved_by(step, metric) * (1 + 1e-9)
    equal = inner(step, step) / inner(turned, step)
    assert equal > 0
    assert equal**2 * moved_by(turned, metric) <= moved_by(step, metric) * (1 + 1e-9)


@given(st.integers(0, 10_000))
def test_stronger_is_more_invariant(seed: int) -> None:
    step, metric = drawn(seed)
    moved = [moved_by(along(step, metric, s), metric) for s in (1e-9, 0.1, 1, 10, 1e3, 1e9)]
    assert moved == sorted(moved, reverse=True)
    assert moved[0] == pytest.approx(moved_by(step, metric), rel=1e-4)
    assert moved[-1] < 1e-3 * moved[0]


def test_no_step_stays_none() -> None:
    assert [part.tolist() for part in along([torch.zeros(2)], [torch.ones(2)], 1.0)] == [[0.0, 0.0]]
    assert [part.tolist() for part in along([torch.ones(2)], [torch.zeros(2)], 1.0)] == [[1.0, 1.0]]


class Odd:
    """Rows of other tokens than those of `Counting`, each two more than the one before it."""

    context = 16

    def __len__(self) -> int:
        return 40

    def read(self, indices: Sequence[int]) -> Examples:
        tokens = 100 + (torch.tensor(indices)[:, None] * 5 + 2 * torch.arange(17)) % 40
        places = torch.arange(16).expand(len(tokens), 16)
        return Examples(tokens[:, :-1], tokens[:, 1:], places.contiguous(), torch.zeros_like(places))


def test_on_a_model_old_answers_move_less_at_equal_progress() -> None:
    """It has learnt the old rows. The same way down the new loss, to first order, changes much less of what is said to
    other old rows: the divergence itself, not the metric, is measured."""
    model = learnt(Decoder(ModelConfig(**SHAPE)).requires_grad_(True))
    old, new = Odd().read(range(30, 40)), Counting().read(range(8))
    metric = fisher_diagonal(model, Odd(), range(30), 0, Ranks())
    gradient = torch.autograd.grad(next_token_loss(model, new), trained(model))
    length = 0.02 / inner(gradient, gradient) ** 0.5
    plain = [-length * g for g in gradient]
    turned = along(plain, metric, 100.0)
    equal = inner(plain, plain) / inner(turned, plain)
    assert moved(model, [equal * part for part in turned], old) < 0.25 * moved(model, plain, old)


def learnt(model: Decoder) -> Decoder:
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    for number in range(40):
        rows = Odd().read(range(8 * number, 8 * number + 8))
        (next_token_loss(model, rows) / rows.supervised).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@torch.no_grad()
def moved(model: Decoder, step: list[Tensor], old: Examples) -> float:
    """KL of the outputs before and after a step, which is taken back."""
    before = model(old.tokens, old.batch).double().log_softmax(-1)
    kept = [parameter.clone() for parameter in model.parameters()]
    for parameter, part in zip(model.parameters(), step, strict=True):
        parameter += part
    after = model(old.tokens, old.batch).double().log_softmax(-1)
    for parameter, was in zip(model.parameters(), kept, strict=True):
        parameter.copy_(was)
    return float((before.exp() * (before - after))[old.targets != IGNORE].sum())


class Point(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0, 2.0]))
        self.frozen = nn.Parameter(torch.tensor([5.0]), requires_grad=False)


def measure(rows: range) -> list[Tensor]:
    """A metric for each row; the mean of theirs."""
    return [torch.tensor([[1.0 + number, 3.0] for number in rows]).mean(0)]


def path(point: Point, lr: float, strength: float, rows: int, *, resumed: bool = False) -> InvariantPath:
    inner = Optimizers(point, [torch.optim.SGD([point.w], lr=lr)])
    return InvariantPath(inner, point, measure, strength, rows, resumed=resumed)


def test_the_optimizers_step_is_turned() -> None:
    """By hand. The metric is (1 + 1.5, 3) of rows 0 ... 3; then rows 4 and 5, (1 + 4.5, 3), count for half. With
    strength 2 and the mean (4 + 3) / 2, the step (-1.5, -2) of SGD is divided by (1 + 2 * 4 / 3.5, 1 + 2 * 3 / 3.5)."""
    point = Point()
    optimizers = path(point, 1.0, 2.0, 4)
    point.w.grad = torch.tensor([3.0, 4.0])
    optimizers.step(0.5)
    turned = torch.tensor([-1.5 / (1 + 8 / 3.5), -2 / (1 + 6 / 3.5)])
    torch.testing.assert_close(point.w.detach(), torch.tensor([1.0, 2.0]) + turned * 2.5 / turned.norm())
    assert point.frozen.item() == 5 and int(optimizers.measured) == 4 + FRESH


def test_its_state_comes_back() -> None:
    """A path that goes on is, bit for bit, one that was left alone."""

    def go_on(point: Point, optimizers: InvariantPath, steps: int) -> None:
        for _ in range(steps):
            point.w.grad = point.w.detach().clone()
            optimizers.step()

    point, other = Point(), Point()
    whole, again = path(point, 0.1, 1.0, 6), path(other, 0.1, 1.0, 6, resumed=True)
    go_on(point, whole, 3)
    saved = {name: tensor.clone() for name, tensor in whole.state_tensors().items()}
    with torch.no_grad():
        other.w.copy_(point.w)
    again.load_state_tensors(saved)
    go_on(point, whole, 2)
    go_on(other, again, 2)
    assert torch.equal(point.w, other.w) and torch.equal(whole.metric[0], again.metric[0])
    assert int(again.measured) == 6 + 5 * FRESH
