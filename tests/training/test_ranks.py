"""Several processes give what one gives (promises D2, R1), and end with a sentence when one of them is gone."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from pellucid.cli.app import run as command
from pellucid.errors import InputError
from pellucid.models.config import ModelConfig
from pellucid.models.decoder import Decoder
from pellucid.training.loss import next_token_loss
from pellucid.training.metrics import read_metrics
from pellucid.training.ranks import Ranks, join
from pellucid.training.step import take_gradient
from tests.training.tiny_run import SHAPE, Counting, ended, fork, fresh, hurry, write_recipe


@given(st.integers(0, 100), st.integers(0, 100), st.integers(1, 20))
def test_shares_are_all_rows_once_and_as_equal_as_can_be(start: int, count: int, world: int) -> None:
    rows = range(start, start + count)
    shares = [Ranks(rank, world).share(rows) for rank in range(world)]
    assert [row for share in shares for row in share] == list(rows)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_alone_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join() as ranks:
        assert ranks == Ranks(0, 1) and ranks.agree(None) is None and ranks.agree(3) == 3 and ranks.first
        assert ranks.sum(torch.tensor(4)) == 4


def test_variables_that_are_not_torchruns_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with (
        pytest.raises(InputError, match=r"WORLD_SIZE = 2 is set, .* RANK .*: start with torchrun, or unset it"),
        join(),
    ):
        pass


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def start(folder: Path, world: int, function: Callable[[], int], name: str = "said") -> list[int]:
    """`world` processes that run `function`, as torchrun would start them; what each prints is in `name`-RANK.txt."""
    port = free_port()
    children = []
    for rank in range(world):

        def one(rank: int = rank) -> int:
            os.environ |= {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }  # fmt: skip
            return function()

        children.append(fork(one, folder / f"{name}-{rank}.txt"))
    return children


def gradients_of_worlds(folder: str) -> None:
    """The gradient of one batch, very unequal in what is learnt from, by 1, 2 and 5 processes; 4 rows."""
    hurry()
    place = Path(folder)

    def one(name: str) -> int:
        with join() as ranks:
            model, rows = Decoder(ModelConfig(**SHAPE)), ranks.share(range(11, 15))
            examples = Counting().read(rows) if rows else None
            taken = take_gradient(model, examples, next_token_loss, ranks=ranks)
            gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
            figures = torch.tensor([taken.loss, taken.norm, taken.learnt, taken.real], dtype=torch.float64)
            save_file({"figures": figures, **gradients}, place / f"{name}-{ranks.rank}.safetensors")
        return 0

    for world in (1, 2, 5):
        statuses = [ended(child) for child in start(place, world, lambda world=world: one(f"of{world}"))]
        assert statuses == [0] * world, [path.read_text() for path in place.glob("said-*")]


def test_the_gradient_of_any_number_of_processes_is_that_of_one(tmp_path: Path) -> None:
    """Each process has it, those too that had no rows; only the order of additions differs."""
    fresh(gradients_of_worlds, str(tmp_path))
    alone = load_file(tmp_path / "of1-0.safetensors")
    rows = Counting().read(range(11, 15))
    counts = (rows.targets >= 0).sum(1)
    assert alone["figures"][2:].tolist() == [counts.sum(), rows.real] and counts.max() > 5 * counts.min()
    for world in (2, 5):
        found = [load_file(tmp_path / f"of{world}-{rank}.safetensors") for rank in range(world)]
        for one in found:
            torch.testing.assert_close(one, alone, rtol=1e-4, atol=1e-7)
            torch.testing.assert_close(one["figures"], alone["figures"], rtol=1e-5, atol=0)
            assert all(torch.equal(one[name], found[0][name]) for name in one)  # they stay together


PLAN: dict[str, Any] = {
    "train": {"steps": 24, "batch": 2, "save_every": 8, "evaluate_every": 12, "sample_prompts": ["The"]},
    "optim": {"lr": 0.005, "warmup": 5, "eps": 1e-3},
}


def runs_of_worlds(folder: str) -> dict[str, list[int]]:
    """The same run by 1, 2 and 3 processes (of which one has no rows), and begun by 2 and ended by 1."""
    place = Path(folder)
    hurry()
    statuses = {}
    for world in (1, 2, 3):
        recipe = write_recipe(place, f"of{world}", **PLAN)
        children = start(place, world, lambda recipe=recipe: command(["pretrain", recipe]), f"of{world}")
        statuses[str(world)] = [ended(child) for child in children]
    recipe = write_recipe(place, "changed", **PLAN)
    children = start(place, 2, lambda: command(["pretrain", recipe]), "began")
    while not (place / "changed/metrics.jsonl").exists() or len(read_metrics(place / "changed")) < 6:
        time.sleep(0.002)
    os.kill(children[1], signal.SIGTERM)  # one gets it, both stop at the same step
    statuses["began"] = [ended(child) for child in children]
    statuses["went on"] = [ended(fork(lambda: command(["pretrain", recipe]), place / "went-on.txt"))]
    return statuses


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[int]]]:
    folder = tmp_path_factory.mktemp("worlds")
    return folder, fresh(runs_of_worlds, str(folder))


def test_one_two_and_three_processes_give_one_curve(worlds: tuple[Path, dict[str, list[int]]]) -> None:
    folder, statuses = worlds
    assert {name: statuses[name] for name in "123"} == {"1": [0], "2": [0, 0], "3": [0, 0, 0]}, said(folder)
    for name in ("of2", "of3", "changed"):
        like(folder / name, folder / "of1")


def like(run: Path, other: Path) -> None:
    """The same curve and weights but for rounding, which grows a little over the steps."""
    curves = [read_metrics(each) for each in (run, other)]
    assert [line["step"] for line in curves[0]] == [line["step"] for line in curves[1]]
    for ours, theirs in zip(*curves, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours.keys() & {"loss", "gradient_norm", "validation_loss", "validation_bits_per_byte"}:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3)
        for name in ("learnt", "tokens", "lr"):
            assert ours.get(name) == theirs.get(name)
    weights = [load_file(each / "final/model.safetensors") for each in (run, other)]
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-3, atol=1e-4)


def said(folder: Path) -> str:
    return "\n".join(f"{path.name}: {path.read_text()}" for path in sorted(folder.glob("*.txt")))


def test_another_number_of_processes_may_go_on(worlds: tuple[Path, dict[str, list[int]]]) -> None:
    """A signal that one process gets stops all of them, at one step."""
    folder, statuses = worlds
    assert statuses["began"] == [143, 143] and statuses["went on"] == [0], said(folder)
    told = (folder / "went-on.txt").read_text()
    assert "the run began with 2 x 1 threads and goes on with 1 processes" in told and "going on after step" in told


def test_only_the_first_process_writes_and_prints(worlds: tuple[Path, dict[str, list[int]]]) -> None:
    folder, _ = worlds
    assert [(folder / f"of3-{rank}.txt").read_text() for rank in (1, 2)] == ["", ""]
    assert "24 steps" in (folder / "of3-0.txt").read_text()
    assert len((folder / "of3/samples.jsonl").read_text().splitlines()) == 2
    assert len(list((folder / "of3/tensorboard").iterdir())) <= 1
    assert sorted(path.name for path in (folder / "of3").iterdir()) == sorted(
        path.name for path in (folder / "of1").iterdir()
    )


def one_is_killed(folder: str, which: str) -> list[Any]:
    """The status of the process that is left, and how long it took to end."""
    hurry()
    place = Path(folder)
    recipe = write_recipe(place, "run", train=PLAN["train"] | {"steps": 100_000})
    children = start(place, 2, lambda: command(["pretrain", recipe]))
    while not (place / "run/metrics.jsonl").exists() or len(read_metrics(place / "run")) < 10:
        time.sleep(0.01)
    os.kill(children[int(which)], signal.SIGKILL)
    began = time.monotonic()
    status = ended(children[1 - int(which)])
    return [status, time.monotonic() - began]


@pytest.mark.parametrize("which", ["0", "1"])
def test_when_one_is_killed_the_other_ends_with_a_sentence(which: str, tmp_path: Path) -> None:
    """Within a minute, and what was saved is there."""
    status, seconds = fresh(one_is_killed, str(tmp_path), which)
    assert status == 1 and seconds < 60
    last = (tmp_path / f"said-{1 - int(which)}.txt").read_text().splitlines()[-1]
    assert last.startswith("error: another process of this run is gone or stuck (")
    assert last.endswith("start all of them again, and the run goes on from its last checkpoint")


def wrong_data(folder: str) -> list[int]:
    place = Path(folder)
    (place / "book.txt").write_text("short")
    recipe = write_recipe(place, "run", **PLAN)
    return [ended(child) for child in start(place, 2, lambda: command(["pretrain", recipe]))]


def test_an_error_of_the_first_ends_all(tmp_path: Path) -> None:
    """No process waits for one that has given up."""
    statuses = fresh(wrong_data, str(tmp_path))
    assert statuses[0] == 2 and statuses[1] != 0
    assert "error: vocab_size = 280: the text (5 characters) gives only" in (tmp_path / "said-0.txt").read_text()


@pytest.mark.slow
def test_torchrun_starts_it(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "run", **PLAN)
    line = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1",
        "--master-port", free_port(), "-m", "pellucid", "pretrain", recipe,
    ]  # fmt: skip
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(line, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("24 steps") == 1
    assert json.loads((tmp_path / "run/final/config.json").read_text())["pellucid"]["steps"] == 24
