"""The equations of GRPO and PPO: against numbers worked by hand, and against other ways of writing them."""

from __future__ import annotations

import math
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pellucid.alignment.advantages import TINY, generalised_advantages, group_advantages, whiten
from pellucid.alignment.drawn import Head
from pellucid.alignment.drawn_rows import lay
from pellucid.alignment.grpo import overlong_punishment, weighed
from pellucid.alignment.grpo_recipe import GRPOSection
from pellucid.alignment.policy_gradient import clipped_loss, kl_estimate
from pellucid.alignment.ppo import adapted, value_loss
from pellucid.alignment.rollouts import Rollout
from pellucid.training import loss

pytestmark = pytest.mark.usefixtures("one_thread")


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def test_clipped_loss_by_hand() -> None:
    """Ratios 1, 1.5 and 0.5 with both signs of the advantage, clipped to [0.8, 1.28]."""
    ratios = numbers(1, 1.5, 1.5, 0.5, 0.5, 1.2)
    advantages = numbers(2, 2, -2, 2, -2, 1)
    loss, ratio, clipped = clipped_loss(ratios.log(), torch.zeros(6), advantages, 0.2, 0.28)
    torch.testing.assert_close(loss, numbers(-2, -2.56, 3, -1, 1.6, -1.2))
    torch.testing.assert_close(ratio, ratios)
    assert clipped.tolist() == [False, True, False, False, True, False]


def test_no_gradient_where_it_is_clipped() -> None:
    log_probs = numbers(0, math.log(1.5), math.log(0.5)).requires_grad_()
    clipped_loss(log_probs, torch.zeros(3), numbers(3, 1, -1), 0.2, 0.2)[0].sum().backward()
    assert log_probs.grad is not None
    torch.testing.assert_close(log_probs.grad, numbers(-3, 0, 0))  # on policy: -A, as in REINFORCE


def test_kl_estimates_by_hand() -> None:
    """p = 1/2 and q = 1/4: ln r = -ln 2, r = 1/2."""
    log_probs, reference = numbers(0.5).log(), numbers(0.25).log()
    for kind, value in (("k1", math.log(2)), ("k2", math.log(2) ** 2 / 2), ("k3", math.log(2) - 0.5)):
        torch.testing.assert_close(kl_estimate(log_probs, reference, kind), numbers(value))  # type: ignore[arg-type]
        assert float(kl_estimate(log_probs, log_probs, kind)) == 0  # type: ignore[arg-type]


def test_kl_estimates_have_the_right_mean() -> None:
    """Summed over a distribution with its chances, k1 and k3 are the divergence itself."""
    p, q = torch.randn(2, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).softmax(-1)
    exact = float((p * (p / q).log()).sum())
    for kind in ("k1", "k3"):
        assert float((p * kl_estimate(p.log(), q.log(), kind)).sum()) == pytest.approx(exact, rel=1e-12)  # type: ignore[arg-type]


def test_group_advantages_by_hand() -> None:
    """Rewards 0, 1, 1, 2: mean 1, and standard deviation sqrt(2/3) with n - 1."""
    rewards = torch.tensor([[0.0, 1, 1, 2], [3, 3, 3, 3]])
    std = math.sqrt(2 / 3) + TINY
    torch.testing.assert_close(
        group_advantages(rewards, scaled=True), torch.tensor([[-1 / std, 0, 0, 1 / std], [0, 0, 0, 0]])
    )
    torch.testing.assert_close(group_advantages(rewards, scaled=False)[0], numbers(-1, 0, 0, 1))


def test_generalised_advantages_by_hand() -> None:
    """Two answers of 3 and 2 tokens, discount 1/2, trace 1/2.

    The first: errors 0 + .5*2 - 1 = 0, 0 + .5*3 - 2 = -.5, 4 - 3 = 1; A3 = 1, A2 = -.5 + .25, A1 = 0 + .25 * -.25.
    """
    rewards = torch.tensor([[0.0, 0, 4], [1, 1, 9]])
    values = torch.tensor([[1.0, 2, 3], [1, 1, 9]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    advantages, returns = generalised_advantages(rewards, values, mask, 0.5, 0.5)
    torch.testing.assert_close(advantages, torch.tensor([[-0.0625, -0.25, 1.0], [0.5, 0, 0]]))
    torch.testing.assert_close(returns, torch.tensor([[0.9375, 1.75, 4.0], [1.5, 1, 0]]))


@given(st.floats(0.1, 1), st.floats(0, 1), st.integers(0, 2**31), st.integers(1, 9))
def test_generalised_advantages_as_a_sum(discount: float, trace: float, seed: int, length: int) -> None:
    """Equation 16 of the paper: A_t = sum over l of (g l)^l d_(t+l)."""
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, 1, length, dtype=torch.float64, generator=generator)
    found, returns = generalised_advantages(rewards, values, torch.ones(1, length, dtype=torch.bool), discount, trace)
    following = torch.cat([values[0, 1:], torch.zeros(1)])
    errors = rewards[0] + discount * following - values[0]
    for t in range(length):
        powers = (discount * trace) ** torch.arange(length - t, dtype=torch.float64)
        assert float(found[0, t]) == pytest.approx(float((powers * errors[t:]).sum()), abs=1e-9)
    if trace == 1:
        powers = discount ** torch.arange(length, dtype=torch.float64)
        assert float(returns[0, 0]) == pytest.approx(float((powers * rewards[0]).sum()), abs=1e-9)


def test_whitening() -> None:
    values = torch.tensor([[1.0, 2, 99], [3, 99, 99]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    torch.testing.assert_close(whiten(values, mask), torch.tensor([[-1.0, 0, 0], [1, 0, 0]]))
    torch.testing.assert_close(whiten(values, mask, shift=False), torch.tensor([[1.0, 2, 0], [3, 0, 0]]))
    assert not whiten(values, torch.zeros(2, 3, dtype=torch.bool)).any()


def test_value_loss_by_hand() -> None:
    """V, old V and return: near; clipped, the clipped one farther away; clipped, the free one farther away."""
    loss, clipped = value_loss(numbers(1.1, 2, 2), numbers(1, 1, 1), numbers(2, 2, 0), 0.2)
    torch.testing.assert_close(loss, numbers(0.405, 0.32, 2))
    assert clipped.tolist() == [False, True, False]


def test_the_coefficient_of_the_kl() -> None:
    assert adapted(0.1, kl=6.0, target=6.0, horizon=10) == 0.1
    assert adapted(0.1, kl=6.6, target=6.0, horizon=10) == pytest.approx(0.101)
    assert adapted(0.1, kl=600, target=6.0, horizon=10) == pytest.approx(0.102)
    assert adapted(0.1, kl=-600, target=6.0, horizon=10) == pytest.approx(0.098)


def test_overlong_punishment() -> None:
    found = overlong_punishment(torch.tensor([1, 12, 14, 16]), max_tokens=16, buffer=4)
    torch.testing.assert_close(found, numbers(0, 0, -0.5, -1))


ROLLOUTS = [Rollout((1, 2), (3,) * n, (-1.0,) * n, (9,) * n, "", n < 4) for n in (2, 4, 3, 1)]


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "dapo"])
def test_normalisation_as_trl_has_it(kind: str) -> None:
    """The total of each kind is what TRL's expression for that loss type gives on the padded batch."""
    laid = lay(ROLLOUTS, 12, torch.device("cpu"))
    per_token = torch.randn(4, 4, generator=torch.Generator().manual_seed(1))
    advantages = numbers(1, -1, 2, 0.5)
    rows = weighed(laid, advantages, torch.ones(4, dtype=torch.bool), GRPOSection(normalise=kind), max_tokens=5)  # type: ignore[arg-type]
    losses = laid.by_place(per_token) * rows.advantages
    ours = (rows.weights * losses).sum() / rows.supervised
    mask, theirs = laid.mask.float(), per_token * advantages[:, None]
    expected = {
        "grpo": ((theirs * mask).sum(-1) / mask.sum(-1).clamp(min=1.0)).mean(),
        "dr_grpo": (theirs * mask).sum() / (theirs.size(0) * 5),
        "dapo": (theirs * mask).sum() / mask.sum(),
    }[kind]
    torch.testing.assert_close(ours, expected)


def test_answers_that_are_masked() -> None:
    laid = lay(ROLLOUTS, 12, torch.device("cpu"))
    ended = torch.tensor([one.ended for one in ROLLOUTS])
    rows = weighed(laid, torch.ones(4), ended, GRPOSection(), max_tokens=4)
    assert rows.supervised == 3
    assert laid.by_answer(rows.weights).sum(-1).tolist() == pytest.approx([1, 0, 1, 1])
    assert weighed(laid, torch.ones(4), ended, GRPOSection(normalise="dapo"), 4).supervised == 6


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo"])
def test_loss_and_gradient_equal_trls(loss_type: str) -> None:
    """The loss of TRL's trainer itself, on the same log-probabilities; both clipped sides and the KL play a part."""
    trl = pytest.importorskip("trl.trainer.grpo_trainer")
    generator = torch.Generator().manual_seed(4)
    laid = lay(ROLLOUTS, 12, torch.device("cpu"))
    S, L = laid.mask.shape
    new = (torch.randn(S, L, generator=generator) * 0.4 - 2).requires_grad_()
    old, reference = torch.full((S, L), -2.0), torch.randn(S, L, generator=generator) * 0.3 - 2
    advantages = numbers(1, -1, 2, -0.5)
    theirs = trl_loss(trl, loss_type, new, old, reference, advantages, laid.mask)
    theirs.backward()
    gradient = new.grad
    new.grad = None
    section = GRPOSection(normalise=loss_type, beta=0.04)  # type: ignore[arg-type]
    rows = weighed(laid, advantages, torch.ones(S, dtype=torch.bool), section, max_tokens=5)
    losses = clipped_loss(new, old, advantages[:, None], 0.2, 0.28)[0] + 0.04 * kl_estimate(new, reference, "k3")
    ours = (rows.weights * laid.by_place(losses)).sum() / rows.supervised
    ours.backward()
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(new.grad, gradient)


def trl_loss(
    trl: Any, loss_type: str, new: Tensor, old: Tensor, reference: Tensor, advantages: Tensor, mask: Tensor
) -> Tensor:
    """`GRPOTrainer._compute_loss` on a stand-in that has what the method reads."""
    one_process = SimpleNamespace(
        num_processes=1, gather=lambda value: value, reduce=lambda value, reduction: value, device=torch.device("cpu")
    )
    stand_in = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (new, torch.zeros_like(new), None),
        top_entropy_quantile=1.0, beta=0.04, importance_sampling_level="token", epsilon_low=0.2, epsilon_high=0.28,
        loss_type=loss_type, max_completion_length=5, accelerator=one_process, current_gradient_accumulation_steps=1,
        model=SimpleNamespace(training=True), use_vllm=False, aux_loss_enabled=False,
        _entropy_bonus_enabled=False, off_policy_mask_threshold=None, tools=None,
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, use_liger_kernel=False, steps_per_generation=1,
                             gradient_accumulation_steps=1),
        _metrics={"train": defaultdict(list)},
    )  # fmt: skip
    inputs = {
        "prompt_ids": torch.zeros(len(mask), 2, dtype=torch.long), "prompt_mask": torch.ones(len(mask), 2),
        "completion_ids": torch.zeros(mask.shape, dtype=torch.long), "completion_mask": mask.long(),
        "advantages": advantages, "old_per_token_logps": old, "ref_per_token_logps": reference,
        "num_items_in_batch": mask.sum(),
    }  # fmt: skip
    loss: Tensor = trl.GRPOTrainer._compute_loss(stand_in, stand_in.model, inputs)
    return loss


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.3])
@pytest.mark.parametrize("cut", [False, True])
def test_drawn_log_probs(softcap: float | None, temperature: float, cut: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and both gradients, of log-probabilities and of entropies, as PyTorch computes them from whole logits."""
    monkeypatch.setattr(loss, "ROWS", 16)
    monkeypatch.setattr(loss, "CHUNK", 1)  # several chunks
    generator = torch.Generator().manual_seed(2)
    N, E, D = 50, 12, 70
    hidden, weight = (torch.randn(*s, generator=generator, requires_grad=True) for s in ((N, E), (D, E)))
    targets, among = (torch.randint(low, high, (N,), generator=generator) for low, high in ((0, D), (1, D + 1)))
    head = Head(weight, temperature, softcap)
    kept = head.nuclei(hidden, targets, among) if cut else None
    found = head.log_probs(hidden, targets, kept)
    to = torch.randn(2, N, generator=generator)
    (found[0] @ to[0] + found[1] @ to[1]).backward()
    gradients = [hidden.grad, weight.grad]
    hidden.grad = weight.grad = None
    logits = hidden @ weight.T
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    scores = logits / temperature
    if cut:
        border = scores.sort(descending=True).values.gather(-1, among[:, None] - 1)
        inside = (scores >= border).scatter(-1, targets[:, None], True)
        assert bool((inside.sum(-1) >= among).all() and (inside.sum(-1) <= among + 1).all())
        scores = scores.masked_fill(~inside, -1e30)
    logs = scores.log_softmax(-1)
    expected = logs.gather(-1, targets[:, None])[:, 0], -(logs.exp() * logs).sum(-1)
    (expected[0] @ to[0] + expected[1] @ to[1]).backward()
    for ours, theirs in zip((*found, *gradients), (*expected, hidden.grad, weight.grad), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=2e-5)
