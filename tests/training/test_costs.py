"""What training costs, against torch's own counter of operations and against what is really held."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from pellucid.models.config import ModelConfig
from pellucid.models.decoder import Decoder
from pellucid.training.costs import keys_seen, multiplied_weights, standing_memory, training_flops, utilisation
from pellucid.training.optimizers import make_optimizer
from pellucid.training.recipe import OptimRecipe

T = 12
SIZE = {"vocab_size": 50, "hidden_size": 24, "num_layers": 3, "num_heads": 4, "intermediate_size": 40}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {},
    "tied, grouped": {"tie_embeddings": True, "num_kv_heads": 2},
    "gpt2": {"position": "learned", "activation": "gelu", "norm": "layernorm", "query_bias": True, "output_bias": True},
    "wide heads, normed": {"head_dim": 16, "num_kv_heads": 1, "qk_norm": True, "norm_position": "sandwich"},
    "post norm": {"position": "sinusoidal", "activation": "relu", "norm_position": "post", "feed_forward_bias": True},
}


def config(**fields: Any) -> ModelConfig:
    return ModelConfig(**{**SIZE, "max_positions": 64, **fields})


@pytest.mark.parametrize("name", CONFIGS)
def test_operations_are_those_that_torch_counts(name: str) -> None:
    """Exactly. Attention that is listened to computes all T x T scores, so that every token sees T keys: as many as in
    a document of 2 T - 1 tokens on average."""
    made = config(**CONFIGS[name])
    model = Decoder(made)
    for block in model.blocks:
        block.attention.pattern.register_forward_hook(lambda *_: None)
    tokens = torch.randint(made.vocab_size, (2, T))
    with FlopCounterMode(display=False) as counter:
        model(tokens).logsumexp(-1).sum().backward()
    assert counter.get_total_flops() == 2 * T * training_flops(made, document=2 * T - 1)


def test_by_hand() -> None:
    """One layer: 4 x 8 x 8 for attention, 3 x 8 x 16 for the gated feed-forward, 8 x 10 for the head; 2 heads of 4."""
    made = ModelConfig(vocab_size=10, hidden_size=8, num_layers=1, num_heads=2, intermediate_size=16, max_positions=32)
    assert multiplied_weights(made) == 256 + 384 + 80
    assert training_flops(made, document=9) == 6 * 720 + 12 * 2 * 4 * 5


@given(st.integers(1, 40), st.none() | st.integers(1, 50))
def test_keys_seen_are_those_of_the_mask(length: int, window: int | None) -> None:
    distance = torch.arange(length)[:, None] - torch.arange(length)
    sees = (distance >= 0) & (distance < (window or length))
    assert keys_seen(length, window) == pytest.approx(sees.sum().item() / length)


@given(st.lists(st.integers(1, 20), min_size=1))
def test_packed_rows_by_their_positions(lengths: list[int]) -> None:
    """What the docstring says of packed rows: the mean of the positions gives the keys that are seen."""
    positions = torch.cat([torch.arange(length) for length in lengths]).double()
    seen = sum(length * (length + 1) / 2 for length in lengths) / len(positions)
    assert keys_seen(2 * positions.mean().item() + 1) == pytest.approx(seen)


def test_windows_are_cheaper_in_their_layers_alone() -> None:
    whole, some, all_ = (
        training_flops(config(window=window, window_layers=layers), 32)
        for window, layers in ((None, None), (8, (True, False, False)), (8, None))
    )
    assert whole - all_ == pytest.approx(3 * (whole - some)) and some < whole


def test_utilisation_by_hand() -> None:
    assert utilisation(flops=2e9, tokens_per_second=50, ceiling=200) == 0.5


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("name", ["tied, grouped", "gpt2"])
def test_memory_is_what_is_held(name: str, optimizer: str) -> None:
    made, optim = config(**CONFIGS[name]), OptimRecipe(optimizer=optimizer)
    model = Decoder(made)
    optimizers = make_optimizer(model, optim)
    model(torch.randint(made.vocab_size, (2, T))).sum().backward()
    optimizers.step()

    def held(tensors: Any) -> int:
        return sum(len(tensor.detach().contiguous().view(-1).untyped_storage()) for tensor in tensors)

    memory = standing_memory(made, optim)
    assert memory.parameters == held(model.parameters())
    assert memory.gradients == held(parameter.grad for parameter in model.parameters())
    assert memory.optimizer == held(
        tensor for part in optimizers.parts for s in part.state.values() for tensor in s.values()
    )
    assert memory.total == memory.parameters + memory.gradients + memory.optimizer
