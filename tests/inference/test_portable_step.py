"""Whole steps as other processors would compute them: attention over every kind of cache, rows apart."""

from __future__ import annotations

import pytest
import torch

from pellucid.inference.runner import Runner
from pellucid.operations import step
from tests.checkpoints.tiny import random_model
from tests.inference.test_runner import MODELS, run_all, texts
from tests.operations import portable

pytestmark = pytest.mark.skipif(step.why_not(torch.float32) is not None, reason="there is no native step here")

every_way = portable.compiled(step)


@pytest.mark.parametrize("name", ["llama", "gemma2", "alibi"])
@torch.no_grad()
def test_pieces_give_the_logits_of_one_forward(name: str) -> None:
    model = random_model(MODELS[name])
    sequences = texts(model, 3)
    whole = [model(torch.tensor([tokens]))[0] for tokens in sequences]
    for ours, theirs in zip(run_all(Runner(model, 16), sequences, 1, 20), whole, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=3e-4)


@pytest.mark.parametrize("int8_cache", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_a_row_does_not_depend_on_its_neighbours(dtype: torch.dtype, int8_cache: bool) -> None:
    model = random_model(MODELS["llama"]).to(dtype)
    sequences = texts(model, 3)
    whole = [model.float()(torch.tensor([tokens]))[0] for tokens in sequences]
    model = model.to(dtype)
    alone = [run_all(Runner(model, 16, int8_cache=int8_cache), [tokens], 2, 1)[0] for tokens in sequences]
    together = run_all(Runner(model, 16, int8_cache=int8_cache), sequences, 3, 25)
    for ours, own, exact in zip(together, alone, whole, strict=True):
        assert torch.equal(ours, own)
        assert (ours - exact).square().mean().sqrt() < 0.03 * exact.std()
