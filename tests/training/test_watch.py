"""What is not finite and a loss that explodes stop a run with a sentence, before they spoil it (promise D9)."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

import pellucid
from pellucid.data.examples import Examples
from pellucid.errors import PellucidError
from pellucid.models.config import ModelConfig
from pellucid.models.decoder import Decoder
from pellucid.training.loss import next_token_loss
from pellucid.training.metrics import read_metrics
from pellucid.training.recipe import OptimRecipe
from pellucid.training.run import RunFolder, newest_checkpoint
from pellucid.training.setting import checkpoint_blocks
from pellucid.training.step import take_gradient
from pellucid.training.watch import FIRST, Watch, blame
from tests.training.tiny_run import COUNTS, SHAPE, Counting, recipe, trainer


def nobody() -> str:
    return "seen nowhere else"


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_stops_at_the_first_step(loss: float) -> None:
    with pytest.raises(PellucidError) as caught:
        Watch(3.0).check(1, loss, 1.0, range(32, 48), lambda: "first seen in what blocks.1 gives")
    assert str(caught.value).startswith(
        "the loss is not finite at step 1, whose batch is rows 32 to 47 of the data (first seen in what blocks.1 gives)"
    )
    assert "pellucid data show RECIPE --first 32" in str(caught.value) and caught.value.exit_status == 1


def test_a_gradient_that_is_not_finite_stops_too() -> None:
    with pytest.raises(PellucidError, match="the gradient is not finite at step 9"):
        Watch(3.0).check(9, 2.0, math.inf, range(1), nobody)


def test_a_loss_explodes_when_it_is_far_above_its_running_mean() -> None:
    watch = Watch(allowed=1.0)
    for step in range(1, FIRST + 1):
        watch.check(step, 5.0, 1.0, range(8), nobody)  # a mean of nothing can be far off: no verdict before
    watch.check(FIRST + 1, 5.99, 1.0, range(8), nobody)
    with pytest.raises(
        PellucidError, match=r"the loss jumped from 5\.05 to 6\.06 at step 22, .* train\.explode"
    ) as caught:
        watch.check(FIRST + 2, 6.06, 1.0, range(8), nobody)
    assert "\n" not in str(caught.value)


def test_early_losses_fall_from_anywhere() -> None:
    watch = Watch(allowed=0.5)
    for step in range(1, 200):
        watch.check(step, 100 / step, 1.0, range(8), nobody)
    assert 100 / 199 < watch.mean < 1.0


@pytest.fixture
def model() -> Decoder:
    return Decoder(ModelConfig(**SHAPE))


ROWS = Counting().read(range(4))


def test_poisoned_weights_are_named(model: Decoder) -> None:
    model.blocks[1].feed_forward.up.weight.data[3, 4] = math.nan
    assert blame(model, ROWS, None) == "first seen in the weights blocks.1.feed_forward.up.weight"


@pytest.mark.parametrize("computed_again", [False, True])
def test_the_module_whose_output_is_first_not_finite_is_named(model: Decoder, computed_again: bool) -> None:
    """The innermost, in the order in which they compute: what reads it comes after."""
    model.blocks[1].feed_forward.up.weight.data.fill_(1e25)  # finite, but not what it is multiplied with
    model.blocks[1].feed_forward.gate.weight.data.fill_(1e25)
    if computed_again:
        checkpoint_blocks(model)
    assert blame(model, ROWS, None) == "first seen in what blocks.1.feed_forward.down gives"


def test_in_half_precision_too(model: Decoder) -> None:
    """What overflows in the type of the products alone."""
    model.blocks[0].attention.value.weight.data.fill_(1e5)
    assert blame(model, ROWS, None) == "seen nowhere else"
    assert blame(model, ROWS, torch.float16) == "first seen in what blocks.0.attention.value gives"


def test_a_gradient_is_named_where_all_else_is_finite(model: Decoder) -> None:
    def objective(model: Decoder, rows: Examples) -> torch.Tensor:
        weight = model.blocks[0].attention.output.weight
        return next_token_loss(model, rows) + (0 * weight[0, 0]).sqrt()  # the slope of a root at 0 is infinite

    taken = take_gradient(model, ROWS, objective)
    assert math.isfinite(taken.loss) and math.isnan(taken.norm)
    assert blame(model, ROWS, None) == "first seen in the gradient of blocks.0.attention.output.weight"


class OneStrange(Counting):
    """Row 30, which step 8 reads, has a token that no other has."""

    def read(self, indices: Sequence[int]) -> Examples:
        examples = super().read(indices)
        for row, index in enumerate(indices):
            if index == 30:
                examples.tokens[row, 5] = 100
        return examples


def test_a_poisoned_row_of_the_embedding_stops_at_the_batch_that_reads_it(tmp_path: Path, model: Decoder) -> None:
    model.embedding.weight.data[100, 7] = math.nan
    with RunFolder.open(tmp_path / "run", recipe(**COUNTS)) as run, pytest.raises(PellucidError) as caught:
        trainer(run, OneStrange(), model=model).train()
    assert str(caught.value).startswith(
        "the loss is not finite at step 8, whose batch is rows 28 to 31 of the data "
        "(first seen in the weights embedding.weight): nothing of it was learnt or saved"
    )
    assert newest_checkpoint(tmp_path / "run") is None
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == list(range(1, 8))


def test_a_batch_that_overflows_stops_the_run_and_what_went_before_is_saved(tmp_path: Path) -> None:
    """All weights are finite; the token of row 30 has an embedding whose sum is not."""
    model = Decoder(ModelConfig(**SHAPE, norm="layernorm"))
    model.embedding.weight.data[100] = 3e38
    plan = recipe(**COUNTS | {"train": COUNTS["train"] | {"save_every": 3}})
    with RunFolder.open(tmp_path / "run", plan) as run, pytest.raises(PellucidError) as caught:
        trainer(run, OneStrange(), model=model, recipe=plan).train()
    assert re.match(
        r"the loss is not finite at step 8, whose batch is rows 28 to 31 of the data "
        r"\(first seen in what blocks\.0\.attention_norm gives\)",
        str(caught.value),
    )
    newest = newest_checkpoint(tmp_path / "run")
    assert newest is not None and newest.step == 6
    assert all(parameter.isfinite().all() for parameter in pellucid.load(tmp_path / "run")[0].parameters())


def test_an_exploding_loss_stops_the_run_with_what_went_before_saved(tmp_path: Path) -> None:
    """From step 41 on the targets are others."""

    class Turning(Counting):
        def read(self, indices: Sequence[int]) -> Examples:
            examples = super().read(indices)
            if indices[0] >= 160:
                examples.targets[examples.targets >= 0] = 250
            return examples

    plan = recipe(**COUNTS | {"train": COUNTS["train"] | {"steps": 100, "save_every": 10, "keep": 9}})
    with RunFolder.open(tmp_path / "run", plan) as run, pytest.raises(PellucidError) as caught:
        trainer(run, Turning(), recipe=plan).train()
    assert re.match(r"the loss jumped from \S+ to \S+ at step 41, whose batch is rows 160 to 163", str(caught.value))
    assert [line["step"] for line in read_metrics(tmp_path / "run")][-1] == 40
    newest = newest_checkpoint(tmp_path / "run")
    assert newest is not None and newest.step == 40
    assert all(parameter.isfinite().all() for parameter in pellucid.load(tmp_path / "run")[0].parameters())


def test_weights_that_a_step_has_spoilt_are_not_saved(tmp_path: Path, model: Decoder) -> None:
    """Even if no batch has met them yet."""
    model.embedding.weight.data[100, 7] = math.inf
    plan = recipe(**COUNTS | {"train": COUNTS["train"] | {"save_every": 3}})
    with RunFolder.open(tmp_path / "run", plan) as run, pytest.raises(PellucidError) as caught:
        trainer(run, model=model, recipe=plan).train()
    assert str(caught.value).startswith("step 3 left weights in embedding.weight that are not finite")
    assert newest_checkpoint(tmp_path / "run") is None


def test_a_learning_rate_that_is_far_too_large_ends_in_a_sentence(tmp_path: Path) -> None:
    plan = recipe(**COUNTS | {"optim": OptimRecipe(lr=1e4, warmup=0).model_dump()})
    with RunFolder.open(tmp_path / "run", plan) as run, pytest.raises(PellucidError, match=r"smaller optim\.lr"):
        trainer(run, recipe=plan).train()
