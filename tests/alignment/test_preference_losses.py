"""Each loss against numbers worked by hand, TRL's own, and what its paper says of it."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pellucid.alignment.preference_losses import LOSSES, WITHOUT_REFERENCE, Compared, Settings, log1m_exp, rewards


def compared(*values: float) -> Compared:
    return Compared(*(torch.tensor([value], dtype=torch.float64) for value in values))


# The better answer: log pi -4, log ref -6, 4 tokens; the worse one: -9, -8, 3 tokens. h = 2 - (-1) = 3
PAIR = compared(-4.0, -9.0, -6.0, -8.0, 4, 3)
EQUAL = compared(-4.0, -9.0, -4.0, -9.0, 4, 3)
SIGMOID = math.log1p(math.exp(-1.5))  # beta 0.5: beta h = 1.5
TURNED = math.log1p(math.exp(1.5))


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def log_odds(log_p: float) -> float:
    return log_p - math.log(1 - math.exp(log_p))


@pytest.mark.parametrize(
    ("loss", "settings", "expected"),
    [
        ("sigmoid", Settings(0.5), SIGMOID),
        ("hinge", Settings(0.25), 0.25),
        ("hinge", Settings(0.5), 0.0),
        ("ipo", Settings(0.5), (2 / 4 + 1 / 3 - 1) ** 2),
        ("conservative", Settings(0.5, smoothing=0.1), 0.9 * SIGMOID + 0.1 * TURNED),
        ("robust", Settings(0.5, smoothing=0.1), (0.9 * SIGMOID - 0.1 * TURNED) / 0.8),
        ("simpo", Settings(2.0, margin=0.5), math.log1p(math.exp(-(2 * (-1 + 3) - 0.5)))),
        ("orpo", Settings(0.1), 1 + 0.1 * math.log1p(math.exp(-(log_odds(-1) - log_odds(-3))))),
        ("kto", Settings(0.5, weights=(1.0, 2.0), kl=0.4), (1 - sigma(0.8) + 2 * (1 - sigma(0.7))) / 2),
    ],
)
def test_numbers_worked_by_hand(loss, settings, expected):
    assert LOSSES[loss](PAIR, settings).item() == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_where_policy_and_reference_are_equal():
    """A2: DPO's loss is ln 2 whatever beta."""
    for beta in (0.01, 0.1, 5.0):
        assert LOSSES["sigmoid"](EQUAL, Settings(beta)).item() == math.log(2)
        assert LOSSES["conservative"](EQUAL, Settings(beta, smoothing=0.3)).item() == pytest.approx(
            math.log(2), rel=1e-12
        )
        assert LOSSES["robust"](EQUAL, Settings(beta, smoothing=0.3)).item() == pytest.approx(math.log(2), rel=1e-12)
        assert LOSSES["hinge"](EQUAL, Settings(beta)).item() == 1
        assert LOSSES["ipo"](EQUAL, Settings(beta)).item() == pytest.approx(1 / (2 * beta) ** 2, rel=1e-12)
        assert LOSSES["kto"](EQUAL, Settings(beta)).item() == 0.5
        assert [one.item() for one in rewards("sigmoid", EQUAL, beta)] == [0, 0]


def test_the_gradient_of_dpo_is_that_of_the_paper():
    """Rafailov et al. 2023, section 4: beta sigma(r_l - r_w) for the worse answer, its negative for the better one."""
    values = [value.clone().requires_grad_() for value in PAIR]
    LOSSES["sigmoid"](Compared(*values), Settings(0.5)).backward()
    assert values[0].grad.item() == pytest.approx(-0.5 * sigma(-1.5), rel=1e-12)
    assert values[1].grad.item() == pytest.approx(0.5 * sigma(-1.5), rel=1e-12)


@given(margin=st.floats(-20, 20), noise=st.floats(0.0, 0.45), beta=st.floats(0.01, 2))
def test_robust_is_unbiased_under_the_noise_that_it_is_told(margin, noise, beta):
    """Its mean over labels that are turned round with probability e is the loss of the true label."""
    right, wrong = compared(margin, 0, 0, 0, 1, 1), compared(0, margin, 0, 0, 1, 1)
    settings = Settings(beta, smoothing=noise)
    mean = (1 - noise) * LOSSES["robust"](right, settings) + noise * LOSSES["robust"](wrong, settings)
    # Terms of at most 40 / 0.1 = 400 cancel
    assert mean.item() == pytest.approx(LOSSES["sigmoid"](right, Settings(beta)).item(), rel=1e-9, abs=1e-9)


@given(st.floats(-700, -1e-300))
def test_log_of_one_less_is_exact_near_0_and_far_from_it(x):
    found = log1m_exp(torch.tensor(x, dtype=torch.float64)).item()
    exact = math.log(-math.expm1(x)) if x > -0.7 else math.log1p(-math.exp(x))
    assert found == pytest.approx(exact, rel=1e-12)


def test_an_answer_that_is_certain_has_finite_gradients():
    values = [value.clone().requires_grad_() for value in compared(0.0, -9.0, 0, 0, 4, 3)]
    loss = LOSSES["orpo"](Compared(*values), Settings(0.1))
    loss.backward()
    assert math.isfinite(loss.item()) and math.isfinite(values[1].grad.item()) and not values[0].grad.isnan().any()


def random_pairs(seed: int, pairs: int = 6) -> Compared:
    generator = torch.Generator().manual_seed(seed)
    lengths = [torch.randint(1, 30, (pairs,), generator=generator).float() for _ in range(2)]
    sums = [-torch.rand(pairs, generator=generator) * 3 * lengths[side] - 0.1 for side in (0, 1, 0, 1)]
    return Compared(*sums, *lengths)


@pytest.mark.parametrize("seed", range(3))
def test_simpo_and_orpo_are_trls(seed):
    """Values and gradients. TRL takes means over tokens; of ORPO its odds ratio, of which it gives the negative."""
    from trl.experimental.cpo.cpo_trainer import CPOTrainer
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

    accelerator = SimpleNamespace(device=torch.device("cpu"))
    cpo = SimpleNamespace(
        alpha=0.0, loss_type="simpo", simpo_gamma=0.5, beta=2.0, label_smoothing=0.0, accelerator=accelerator
    )
    found = random_pairs(seed)
    chosen, rejected = (found.chosen / found.chosen_tokens, found.rejected / found.rejected_tokens)
    losses = CPOTrainer.cpo_loss(cpo, chosen, rejected)[0]
    torch.testing.assert_close(LOSSES["simpo"](found, Settings(2.0, margin=0.5)), losses, rtol=1e-5, atol=1e-6)
    orpo = SimpleNamespace(beta=0.3, accelerator=accelerator)
    odds = ORPOTrainer.odds_ratio_loss(orpo, chosen, rejected)[0]
    torch.testing.assert_close(LOSSES["orpo"](found, Settings(0.3)), -chosen - odds, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_falls_as_the_better_answer_gets_likelier(loss):
    values = [value.clone().requires_grad_() for value in compared(-4.0, -4.0, -4.0, -4.0, 4, 4)]
    LOSSES[loss](Compared(*values), Settings(0.5)).backward()
    assert values[0].grad.item() < 0 < values[1].grad.item()
    shifted = compared(-4.0, -4.0, -5.0, -3.0, 4, 4)
    same = [LOSSES[loss](c, Settings(0.5)).item() for c in (compared(-4.0, -4.0, -4.0, -4.0, 4, 4), shifted)]
    assert (same[0] == same[1]) == (loss in WITHOUT_REFERENCE)
