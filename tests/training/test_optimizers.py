"""Which parameter goes where, parity with torch's AdamW, and a state that is saved and loaded bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pellucid.errors import PellucidError
from pellucid.models.config import ModelConfig
from pellucid.models.decoder import Decoder
from pellucid.training.muon import Muon
from pellucid.training.optimizers import Optimizers, make_optimizer
from pellucid.training.recipe import OptimRecipe


def decoder(**fields: Any) -> Decoder:
    """A small decoder with biases and learned positions, so that every kind of parameter is there."""
    size = {"vocab_size": 30, "hidden_size": 16, "num_layers": 2, "num_heads": 4, "intermediate_size": 24}
    kinds = {"norm": "layernorm", "query_bias": True, "output_bias": True, "feed_forward_bias": True}
    return Decoder(ModelConfig(**{**size, **kinds, "position": "learned", "max_positions": 16, **fields}))


def give_gradients(model: Decoder, step: int) -> None:
    """A real loss on tokens that follow from the step."""
    tokens = torch.randint(30, (2, 8), generator=torch.Generator().manual_seed(step))
    logits = model(tokens[:, :-1])
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()


def train(model: Decoder, optimizers: Optimizers, steps: range) -> None:
    for step in steps:
        give_gradients(model, step)
        optimizers.step(1 / (step + 1))
        optimizers.zero_grad()


def placed(model: Decoder, optim: OptimRecipe) -> dict[str, tuple[type, float]]:
    """Each parameter's optimizer and weight decay."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: (type(part), group["weight_decay"])
        for part in make_optimizer(model, optim).parts
        for group in part.param_groups
        for parameter in group["params"]
    }


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_each_parameter_has_its_place(optimizer: str, tied: bool) -> None:
    model = decoder(tie_embeddings=tied)
    seen = placed(model, OptimRecipe(optimizer=optimizer, weight_decay=0.1))
    assert seen.keys() == dict(model.named_parameters()).keys()
    for name, where in seen.items():
        in_block = name.startswith("blocks.") and name.endswith(".weight") and "norm" not in name
        matrix = in_block or name == "head.weight"
        muon = in_block and optimizer == "muon"
        assert where == (Muon if muon else torch.optim.AdamW, 0.1 if matrix else 0.0), name


def test_frozen_parameters_have_none() -> None:
    model = decoder()
    model.embedding.requires_grad_(False)
    assert "embedding.weight" not in placed(model, OptimRecipe())
    model.requires_grad_(False)
    model.blocks[0].attention.query.weight.requires_grad_(True)
    for optimizer in ("adamw", "muon"):
        assert placed(model, OptimRecipe(optimizer=optimizer)).keys() == {"blocks.0.attention.query.weight"}


def test_rates_are_the_recipes_times_the_scale() -> None:
    optimizers = make_optimizer(decoder(), OptimRecipe(optimizer="muon", lr=0.1, matrix_lr=0.3))
    for scale in (0.5, 0.25):
        optimizers.step(scale)
        rates = [{group["lr"] for group in part.param_groups} for part in optimizers.parts]
        assert rates == [{0.1 * scale}, {0.3 * scale}]
    (_, muon) = make_optimizer(decoder(), OptimRecipe(optimizer="muon", lr=0.1)).parts
    assert muon.param_groups[0]["lr"] == 0.1


def test_adamw_is_torchs() -> None:
    """Against its plain form, one tensor at a time, with the groups written out."""
    ours, theirs = decoder(), decoder()
    optimizers = make_optimizer(ours, OptimRecipe(lr=1e-2, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.3))
    named = dict(theirs.named_parameters())
    decayed = {
        name for name in named if named[name].dim() == 2 and name not in ("embedding.weight", "positions.weight")
    }
    groups = [
        {"params": [named[name] for name in named if name in decayed], "weight_decay": 0.3},
        {"params": [named[name] for name in named if name not in decayed], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, lr=1e-2, betas=(0.8, 0.9), eps=1e-6, foreach=False, fused=False)
    for step in range(8):
        for model in (ours, theirs):
            model.zero_grad()
            give_gradients(model, step)
        for group in reference.param_groups:
            group["lr"] = 1e-2 / (step + 1)
        optimizers.step(1 / (step + 1))
        reference.step()
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter, named[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_it_learns(optimizer: str) -> None:
    """Sixteen tokens by heart: the loss falls to a tenth in forty steps."""
    model = decoder()
    optimizers = make_optimizer(model, OptimRecipe(optimizer=optimizer, lr=3e-2, weight_decay=0.0))
    tokens = torch.randint(30, (2, 9), generator=torch.Generator().manual_seed(0))
    losses = []
    for _ in range(40):
        logits = model(tokens[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimizers.zero_grad()
        loss.backward()
        optimizers.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 10


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("interrupted", [0, 3])
def test_an_interruption_changes_no_bit(optimizer: str, interrupted: int, tmp_path: Path) -> None:
    optim = OptimRecipe(optimizer=optimizer, lr=1e-2)
    whole, first, second = decoder(), decoder(), Decoder(decoder().config, seed=7)
    train(whole, make_optimizer(whole, optim), range(6))

    before = make_optimizer(first, optim)
    train(first, before, range(interrupted))
    save_file({name: tensor.clone() for name, tensor in before.state_tensors().items()}, tmp_path / "state.safetensors")
    second.load_state_dict(first.state_dict())
    after = make_optimizer(second, optim)
    after.load_state_tensors(load_file(tmp_path / "state.safetensors"))
    train(second, after, range(interrupted, 6))

    for (name, expected), parameter in zip(whole.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(expected, parameter), name


def test_what_was_loaded_is_not_shared() -> None:
    model = decoder()
    optimizers, other = make_optimizer(model, OptimRecipe()), make_optimizer(model, OptimRecipe())
    kept = {name: tensor.clone() for name, tensor in optimizers.state_tensors().items()}
    other.load_state_tensors(kept)
    train(model, other, range(1))
    assert not any(tensor.any() for tensor in kept.values())


def test_the_names_are_the_same_before_and_after_a_step() -> None:
    model = decoder()
    optimizers = make_optimizer(model, OptimRecipe(optimizer="muon"))
    before = {name: tensor.shape for name, tensor in optimizers.state_tensors().items()}
    train(model, optimizers, range(1))
    assert {name: tensor.shape for name, tensor in optimizers.state_tensors().items()} == before
    assert {"blocks.0.attention.query.weight.momentum", "final_norm.weight.exp_avg_sq", "head.weight.step"} <= set(
        before
    )


def without(name: str) -> Any:
    return lambda tensors: tensors.pop(name)


def with_tensor(name: str, tensor: Tensor) -> Any:
    return lambda tensors: tensors.update({name: tensor})


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (without("head.weight.exp_avg"), "lacks 'head.weight.exp_avg'"),
        (with_tensor("tail.weight.step", torch.zeros(())), "holds, beside what this run needs, 'tail.weight.step'"),
        (
            with_tensor("head.weight.exp_avg", torch.ones(30, 15)),
            r"is float32 \(30, 15\) and has to be float32 \(30, 16\)",
        ),
        (with_tensor("head.weight.exp_avg", torch.ones(30, 16).half()), r"is float16 \(30, 16\) and has to be float32"),
    ],
)
def test_a_state_of_something_else_is_refused(spoil: Any, said: str) -> None:
    """And nothing has been changed by then."""
    model = decoder()
    optimizers = make_optimizer(model, OptimRecipe())
    tensors = {name: torch.ones_like(tensor) for name, tensor in optimizers.state_tensors().items()}
    spoil(tensors)
    with pytest.raises(PellucidError, match=f"{said}.*resume with the recipe that it was written with"):
        optimizers.load_state_tensors(tensors)
    assert not any(tensor.any() for tensor in optimizers.state_tensors().values())
