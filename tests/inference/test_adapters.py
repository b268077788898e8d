"""Promise I15: a batch over the base and two adapters equals each alone, and the prefix cache knows who wrote it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pellucid.inference.runner import Runner
from pellucid.models.adapters import AdapterConfig, active_adapter, adapter_parameters, add_adapter, use_adapter
from pellucid.models.decoder import Decoder
from tests.checkpoints.tiny import CONFIGS, random_model
from tests.inference.test_runner import run_all, texts
from tests.inference.tiny import ARCHITECTURES, tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

MODELS = CONFIGS | {name: tiny_model(name).config for name in ARCHITECTURES if name not in CONFIGS}
NAMES = (None, "poet", "clerk")


def adapted_model(config: str, dtype: torch.dtype = torch.float32) -> Decoder:
    """A model with two adapters that change it much, and not the same layers; none is active."""
    model = random_model(MODELS[config]).to(dtype)
    some = ("c_attn", "mlp.c_proj") if config == "gpt2" else ("query", "value", "down")
    add_adapter(model, AdapterConfig(rank=4, alpha=8), "poet")
    add_adapter(model, AdapterConfig(rank=20, alpha=5, rslora=True, dora=True, targets=some), "clerk")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name in ("poet", "clerk"):
            for parameter in adapter_parameters(model, name):
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    use_adapter(model, None)
    return model.eval()


def whole(model: Decoder, tokens: list[int], adapter: str | None) -> Tensor:
    """The logits at every place, by one forward with an adapter."""
    use_adapter(model, adapter)
    logits = model(torch.tensor([tokens]))[0]
    use_adapter(model, None)
    return logits


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("config", MODELS)
@torch.no_grad()
def test_a_step_of_several_adapters_gives_the_logits_of_a_forward_with_each(config: str, native: bool) -> None:
    """float32, logits up to 13: both ways are up to 1e-4 away from what float64 gives."""
    model = adapted_model(config)
    sequences = texts(model, 6)
    adapters = [NAMES[number % 3] for number in range(6)]
    expected = [whole(model, *each) for each in zip(sequences, adapters, strict=True)]
    assert (expected[0] - whole(model, sequences[0], "poet")).abs().max() > 0.1
    runner = Runner(model, 32, native=native)
    assert (runner.why_not is None) == (native and config != "sinusoidal")
    for ours, theirs in zip(run_all(runner, sequences, 1, 5, adapters), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=3e-4)
    assert active_adapter(model) is None
