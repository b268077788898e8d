"""Loss and gradients of the same pairs and weights in TRL's own trainers."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer

import pellucid
from pellucid.alignment.dpo import preference_loss
from pellucid.alignment.dpo_run import read_data
from pellucid.alignment.policy import open_policy
from pellucid.alignment.preference_losses import Settings
from pellucid.alignment.reference import other_log_probs, reference_log_probs
from pellucid.checkpoints.save import About, save
from pellucid.data.mismatched import mismatched
from pellucid.data.pairs import Pairs
from pellucid.models.decoder import Decoder
from pellucid.training.step import take_gradient
from tests.alignment.pairs import recipe

pytestmark = pytest.mark.usefixtures("one_thread")
ROWS = 5


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> tuple[Path, Pairs]:
    """A policy and another model as its reference, saved, and pairs that know what the reference says."""
    from trl.trainer.base_trainer import _BaseTrainer

    patch = pytest.MonkeyPatch()
    request.addfinalizer(patch.undo)
    patch.setattr(_BaseTrainer, "_send_telemetry", lambda self: None)
    folder = tmp_path_factory.mktemp("trl")
    read = recipe(folder)
    pairs = read_data(read).pairs
    policy, tokenizer = open_policy(read.base)
    save(policy, tokenizer, folder / "policy", about=About(base="nothing"))
    reference = Decoder(policy.config, seed=5)
    save(reference, tokenizer, folder / "reference", about=About(base="nothing"))
    pairs.reference = reference_log_probs(reference, pairs, others=True)
    return folder, pairs


def ours(folder: Path, pairs: Pairs, loss: Any, settings: Settings) -> tuple[float, dict[str, torch.Tensor]]:
    model, _ = open_policy(str(folder / "policy"))
    objective = partial(preference_loss, loss=loss, settings=settings)
    gradient = take_gradient(model, pairs.read(range(ROWS)), objective)
    save_as = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return gradient.loss, save_as


def padded(rows: list[tuple[Any, Any]]) -> dict[str, torch.Tensor]:
    """Documents as TRL's collators lay them out."""
    ids = [torch.tensor(np.asarray(tokens)) for tokens, _ in rows]
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(one) for one in ids], batch_first=True),
        "completion_mask": pad_sequence([torch.tensor(np.asarray(said)).long() for _, said in rows], batch_first=True),
    }


def check(folder: Path, theirs: Any, model: Any, value: float, gradients: dict[str, torch.Tensor]) -> None:
    """Their gradients stand in the place of weights for a moment, so that they get our names."""
    assert value == pytest.approx(float(theirs), rel=1e-5, abs=1e-5)
    theirs.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.grad)
    model.save_pretrained(folder / "gradients")
    AutoTokenizer.from_pretrained(folder / "policy").save_pretrained(folder / "gradients")
    found = pellucid.load(folder / "gradients", dtype="float32")[0].weights()
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        # Sums over some 500 tokens in float32; entries far below the largest are what is left of larger ones
        torch.testing.assert_close(gradient, found[name], rtol=1e-5, atol=1e-5 * float(gradient.abs().max()))


def arguments(kind: Any, folder: Path, **named: Any) -> Any:
    return kind(
        output_dir=str(folder / "out"), report_to=[], use_cpu=True, bf16=False, per_device_train_batch_size=8, **named
    )


@pytest.mark.parametrize(
    ("loss", "beta", "smoothing"),
    [("sigmoid", 0.1, 0.0), ("sigmoid", 0.7, 0.0), ("hinge", 0.1, 0.0), ("ipo", 0.2, 0.0), ("robust", 0.1, 0.2)],
)
def test_dpo(setup: tuple[Path, Pairs], loss: Any, beta: float, smoothing: float) -> None:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    folder, pairs = setup
    policy, reference = (AutoModelForCausalLM.from_pretrained(folder / name) for name in ("policy", "reference"))
    trainer = DPOTrainer(
        policy,
        reference,
        arguments(DPOConfig, folder, loss_type=[loss], beta=beta, label_smoothing=smoothing, disable_dropout=True),
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),
        processing_class=AutoTokenizer.from_pretrained(folder / "policy"),
    )
    answers = [pairs.answers(number) for number in pairs.read(range(ROWS)).numbers.tolist()]
    inputs = padded([one[0] for one in answers] + [one[1] for one in answers])
    theirs = trainer._compute_loss(policy, inputs, return_outputs=False)
    check(folder, theirs, policy, *ours(folder, pairs, loss, Settings(beta, smoothing)))


def test_kto(setup: tuple[Path, Pairs]) -> None:
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    folder, pairs = setup
    policy, reference = (AutoModelForCausalLM.from_pretrained(folder / name) for name in ("policy", "reference"))
    data = [{"prompt": "a", "completion": "b", "label": True}, {"prompt": "a", "completion": "c", "label": False}]
    trainer = KTOTrainer(
        policy,
        reference,
        arguments(KTOConfig, folder, beta=0.3, desirable_weight=1.0, undesirable_weight=1.0, disable_dropout=True),
        train_dataset=Dataset.from_list(data),
        processing_class=AutoTokenizer.from_pretrained(folder / "policy"),
    )
    numbers = pairs.read(range(ROWS)).numbers.numpy()
    answers = [pairs.answers(number) for number in numbers.tolist()]
    inputs: dict[str, Any] = padded([one[0] for one in answers] + [one[1] for one in answers])
    others = mismatched(pairs, numbers)
    rows = []
    for tokens, targets, documents in zip(others.tokens, others.targets, others.documents, strict=True):
        length = int((documents >= 0).sum())
        rows.append((tokens[:length], torch.cat([torch.zeros(1), (targets[: length - 1] >= 0).float()])))
    inputs |= {f"KL_{name}": value for name, value in padded(rows).items()}
    inputs["label"] = torch.tensor([True] * len(numbers) + [False] * len(numbers))
    theirs = trainer._compute_loss(policy, inputs, return_outputs=False)
    model, _ = open_policy(str(folder / "policy"))
    with torch.no_grad():
        assert pairs.reference is not None
        distance = float(
            (other_log_probs(model, pairs, numbers, None) - torch.tensor(pairs.reference[numbers, 2])).mean()
        )
    check(folder, theirs, policy, *ours(folder, pairs, "kto", Settings(0.3, kl=max(0.0, distance))))
