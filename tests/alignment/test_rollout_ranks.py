"""Several processes learn from rewards as one does (promise R1), those too that have no prompt of a step."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pellucid.cli.app import run as command
from pellucid.training.metrics import read_metrics
from tests.alignment.toy import content
from tests.training.test_ranks import start
from tests.training.tiny_run import ended, fresh, hurry

METHODS = {"grpo": {"grpo": {"beta": 0.1}}, "ppo": {"ppo": {"epochs": 2, "whiten_rewards": True}}}


def runs_of_worlds(folder: str) -> list[list[int]]:
    hurry()
    place, statuses = Path(folder), []
    for method, section in METHODS.items():
        for world in (1, 3):
            train = {"steps": 3, "batch": 2, "evaluate_every": 2}
            data = {"validation": str(place / "prompts.jsonl")}
            given = content(place, run=str(place / f"{method}-{world}"), train=train, data=data, **section)
            recipe = place / f"{method}-{world}.yaml"
            recipe.write_text(yaml.safe_dump(given), encoding="utf-8")
            asked = [method, str(recipe)]
            children = start(place, world, lambda asked=asked: command(asked), f"{method}-{world}")
            statuses.append([ended(child) for child in children])
    return statuses


@pytest.mark.slow
def test_one_and_three_processes_give_one_curve(tmp_path: Path) -> None:
    """The same answers while the weights are the same; then the order of additions differs in the last bits, by which
    Adam moves weights whose gradient is next to nothing elsewhere."""
    assert fresh(runs_of_worlds, str(tmp_path)) == [[0], [0] * 3] * 2, said(tmp_path)
    for method in METHODS:
        alone, together = (read_metrics(tmp_path / f"{method}-{world}") for world in (1, 3))
        assert len(alone) == len(together) == 3
        for name in ("reward", "reward_std", "answer_tokens", "learnt"):
            assert together[0][name] == pytest.approx(alone[0][name], rel=1e-12)
        for name in ("gradient_norm", "objective/entropy"):
            assert together[0][name] == pytest.approx(alone[0][name], rel=1e-3)
        assert together[0]["objective/kl"] == pytest.approx(alone[0]["objective/kl"], abs=1e-4)
        assert [line["reward"] for line in together] == pytest.approx([line["reward"] for line in alone], abs=0.1)


def said(folder: Path) -> str:
    return "\n".join(f"{path.name}: {path.read_text()}" for path in folder.glob("*-*.txt"))
