"""What the native step reads: layers side by side lie in one piece of memory, once, however many engines read it."""

from __future__ import annotations

import pytest
import torch

from pellucid.inference.native_matrices import as_one
from pellucid.inference.runner import Runner
from pellucid.inference.step import Chunk, Step
from pellucid.models.decoder import Decoder
from tests.checkpoints.tiny import CONFIGS, random_model
from tests.models.few_bits import quantise

pytestmark = pytest.mark.usefixtures("one_thread")


def places(model: Decoder) -> dict[str, int]:
    return {name: one.data_ptr() for name, one in model.state_dict().items()}


def logits(runner: Runner) -> torch.Tensor:
    return runner.run(Step((Chunk([5, 6, 7], 0, [0], 3),), ())).clone()


@pytest.mark.parametrize("few_bits", [False, True])
@torch.no_grad()
def test_a_second_engine_reads_what_the_first_has_laid_together(few_bits: bool) -> None:
    model = random_model(CONFIGS["llama"])
    if few_bits:
        quantise(model, "int8")
    first = Runner(model, 4)
    assert first.native is not None
    before, expected = places(model), logits(first)
    second = Runner(model, 4)
    assert places(model) == before
    assert torch.equal(logits(second), expected) and torch.equal(logits(first), expected)


@torch.no_grad()
def test_weights_that_are_written_over_reach_every_engine() -> None:
    model, other = random_model(CONFIGS["llama"]), random_model(CONFIGS["llama"])
    for parameter in other.parameters():
        parameter.mul_(1.1)
    both = Runner(model, 4), Runner(model, 4)
    model.load_state_dict(other.state_dict())
    for one in both:
        one.weights_changed()
        assert torch.equal(logits(one), logits(Runner(other, 4)))


def test_what_lies_together_is_one_matrix_and_the_rest_is_not() -> None:
    whole = torch.arange(40.0).view(10, 4)
    found = as_one([whole[2:5], whole[5:6], whole[6:]])
    assert found is not None and found.data_ptr() == whole[2].data_ptr() and torch.equal(found, whole[2:])
    assert as_one([whole[2:5], whole[6:]]) is None  # a row is missing
    assert as_one([whole[5:6], whole[2:5]]) is None
    assert as_one([whole[:, :2], whole[:, 2:]]) is None
    assert as_one([whole[:2], torch.ones(2, 4)]) is None
