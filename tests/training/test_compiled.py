"""Training compiled: the same losses as without, in both precisions, with evaluations in between."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pellucid.training.run import RunFolder
from pellucid.training.setting import Setting, why_not_compile
from tests.training.tiny_run import COUNTS, Counting, recipe, trainer


@pytest.mark.skipif(why_not_compile(torch.device("cpu")) is not None, reason="there is no compiler to compile with")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.03)])
def test_a_compiled_run_gives_the_losses_of_one_that_is_not(
    dtype: torch.dtype, tolerance: float, tmp_path: Path
) -> None:
    losses = []
    for compiled in (False, True):
        content = {**COUNTS, "train": {"steps": 8, "batch": 4, "save_every": 8, "evaluate_every": 4}}
        asked = recipe(**content)
        asked = asked.model_copy(update={"run": str(tmp_path / str(compiled))})
        with RunFolder.open(asked.run, asked) as run:
            setting = Setting(torch.device("cpu"), dtype, compiled, threads=1)
            trainer(run, recipe=asked, setting=setting, validation=Counting()).train()
        lines = map(json.loads, (tmp_path / str(compiled) / "metrics.jsonl").read_text().splitlines())
        losses.append([line.get("loss", line.get("validation_loss")) for line in lines])
    assert len(losses[0]) == 10
    assert losses[1] == pytest.approx(losses[0], abs=tolerance)
    assert losses[0][0] - losses[0][-2] > 10 * tolerance
