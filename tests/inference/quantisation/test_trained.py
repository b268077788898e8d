"""A small model that was trained on real text: on text that it has not seen, GPTQ errs less than plain rounding."""

from __future__ import annotations

import pytest
import torch

from pellucid.data.texts import read
from pellucid.inference.quantisation.compare import Difference, compare
from pellucid.inference.quantisation.quantise import quantise
from pellucid.inference.quantisation.rounding import Grid
from pellucid.models.config import ModelConfig
from pellucid.models.decoder import Decoder
from tests.checkpoints.tiny import SIZES

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS, TOGETHER, LENGTH = 200, 16, 64


@pytest.fixture(scope="module")
def text() -> torch.Tensor:
    """Bytes of the State of the Union addresses, (rows, 64)."""
    data = torch.tensor(list(read("state-of-the-union")[:600_000].encode()))
    return data[: len(data) // LENGTH * LENGTH].view(-1, LENGTH)


@pytest.fixture(scope="module")
def trained(text: torch.Tensor) -> Decoder:
    """It has seen the first rows, and none of the last thousand."""
    model = Decoder(ModelConfig(**SIZES | {"num_layers": 3}), seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    for step in range(STEPS):
        rows = text[torch.randint(len(text) - 1000, (TOGETHER,), generator=generator)]
        loss = torch.nn.functional.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        optimizer.param_groups[0]["lr"] = 3e-3 * min(1, (STEPS - step) / 100)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 2.5  # it has learnt something: 5.6 is chance
    return model.eval()


@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize("name", ["Q4_0", "Q4_1"])
def test_gptq_errs_less_on_unseen_text(name: str, short: bool, trained: Decoder, text: torch.Tensor) -> None:
    found: dict[str, Difference] = {}
    for method, learnt in (("rtn", None), ("gptq", text[:128])):
        model = Decoder(trained.config)
        model.load_state_dict(trained.state_dict())
        quantise(model, Grid(name, short), learnt, embedding=False)
        found[method] = compare(trained, model, text[-200:])
    assert found["gptq"].kl_mean < 0.6 * found["rtn"].kl_mean
    assert found["gptq"].agreement > found["rtn"].agreement
    if not (short and name == "Q4_1"):  # there both come so near to the original's perplexity that chance decides
        before = found["rtn"].perplexity_before
        assert found["gptq"].perplexity_after - before < 0.8 * (found["rtn"].perplexity_after - before)
