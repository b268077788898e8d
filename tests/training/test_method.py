"""A method of its own in the loop: several gradients a step, a state that a run goes on from, more than one module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pellucid.data.examples import Examples
from pellucid.models.config import ModelConfig
from pellucid.models.decoder import Decoder
from pellucid.training.loop import Trainer
from pellucid.training.loss import next_token_loss
from pellucid.training.method import Moved
from pellucid.training.metrics import read_metrics
from pellucid.training.run import RunFolder
from pellucid.training.step import Measured
from tests.training.tiny_run import COUNTS, SHAPE, Counting, recipe, trainer

pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass
class Twice:
    """Two gradients of the same rows a step, at a weight that it remembers and doubles; `stop` after so many steps."""

    stop: int | None = None
    weight: float = 0.5

    def step(self, trainer: Trainer, number: int) -> Moved:
        if number == self.stop:
            raise KeyboardInterrupt
        batch = range(4 * number - 4, 4 * number)
        examples = Counting().read(batch)
        for _ in range(2):
            gradient = trainer.descend(number, examples, self.objective, batch, measures=("weighted",))
        self.weight *= 1.01
        measures = {"weight": self.weight, **gradient.measures}
        return Moved(gradient.loss, gradient.learnt, gradient.real, gradient.norm, measures=measures)

    def objective(self, model: Decoder, examples: Examples) -> Measured:
        total = self.weight * next_token_loss(model, examples)
        return Measured(total, {"weighted": total})

    def preflight(self, trainer: Trainer) -> None:
        trainer.gradient(Counting().read(range(4)).heaviest(), self.objective, measures=("weighted",))

    def state(self) -> dict[str, Any]:
        return {"weight": self.weight}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.weight = state["weight"]


def plan() -> Any:
    return recipe(optim=COUNTS["optim"], train={"steps": 6, "batch": 4, "save_every": 2, "evaluate_every": 10})


def test_a_method_that_is_stopped_goes_on_bit_for_bit(tmp_path: Path) -> None:
    for name, stop in (("whole", None), ("stopped", 4)):
        with RunFolder.open(tmp_path / name, plan()) as run:
            if stop is not None:
                with pytest.raises(KeyboardInterrupt):
                    trainer(run, recipe=plan(), method=Twice(stop)).train()
            trainer(run, recipe=plan(), method=Twice()).train()
    left, right = ((tmp_path / name / "final/model.safetensors").read_bytes() for name in ("whole", "stopped"))
    assert left == right
    lines = [line for line in read_metrics(tmp_path / "stopped") if "weight" in line]
    assert [line["weight"] for line in lines] == pytest.approx([0.5 * 1.01**n for n in range(1, 7)])
    assert all(line["weighted"] == pytest.approx(line["loss"], rel=1e-6) for line in lines)


def test_a_second_module_is_moved_and_clipped_with_the_model(tmp_path: Path) -> None:
    """As a value model beside a policy: its parameters count in the gradient's norm, and are stepped."""
    model, beside = Decoder(ModelConfig(**SHAPE)), nn.Linear(1, 1, bias=False)
    before = beside.weight.item()

    def objective(model: Decoder, examples: Examples) -> Tensor:
        return next_token_loss(model, examples) + 1e4 * beside.weight.sum()

    both = nn.ModuleDict({"model": model, "beside": beside})
    with RunFolder.open(tmp_path / "run", plan()) as run:
        trainer(run, recipe=plan(), model=model, objective=objective, trained=both).train()
    assert beside.weight.item() < before
    assert read_metrics(run.path)[0]["gradient_norm"] >= 1e4 / (4 * 16)
    assert torch.isfinite(beside.weight).all()
