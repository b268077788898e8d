"""`keep` in a fine-tuning run: penalties worked by hand, however a batch is cut; runs that go on; bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

import pellucid
from pellucid.alignment.invariant import InvariantPath
from pellucid.alignment.keeping import PENALTY, penalised, quadratic
from pellucid.alignment.recipe import SFTRecipe
from pellucid.alignment.sft import fine_tune, open_policy
from pellucid.checkpoints.save import About, save
from pellucid.cli.app import run as command
from pellucid.models.config import ModelConfig
from pellucid.models.decoder import Decoder
from pellucid.training import loop, setting
from pellucid.training.loop import Trainer
from pellucid.training.loss import next_token_loss
from pellucid.training.method import Moved, Supervised
from pellucid.training.metrics import read_metrics
from pellucid.training.recipe import parse_recipe
from pellucid.training.step import Measured, take_gradient
from tests.alignment.chats import CONFIG, about_towns, base_tokenizer, write_lines
from tests.training.tiny_run import SHAPE, Counting, write_book

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes long in runs this short is left out: pictures, measuring."""
    monkeypatch.setattr(loop, "write_curves", lambda *_: None)
    monkeypatch.setattr(setting, "matmul_rate", lambda _: 100.0)


def test_the_penalties_by_hand() -> None:
    """lambda/2 sum F (w - w0)^2, and its gradient lambda F (w - w0)."""
    w, v = nn.Parameter(torch.tensor([1.0, 2.0])), nn.Parameter(torch.tensor([[3.0]]))
    plain = quadratic([w, v], 0.5)
    weighed = quadratic([w, v], 0.5, [torch.tensor([2.0, 0.0]), torch.tensor([[10.0]])])
    assert plain().item() == weighed().item() == 0
    with torch.no_grad():
        w += torch.tensor([1.0, -2.0])
        v += 0.5
    assert plain().item() == 0.25 * (1 + 4 + 0.25)
    assert weighed().item() == 0.25 * (2 * 1 + 0 + 10 * 0.25)
    assert [g.tolist() for g in torch.autograd.grad(plain(), [w, v])] == [[0.5, -1.0], [[0.25]]]
    assert [g.tolist() for g in torch.autograd.grad(weighed(), [w, v])] == [[1.0, 0.0], [[2.5]]]


@pytest.mark.parametrize("micro_batch", [1, 3, 8])
def test_a_batch_has_the_penalty_once_however_it_is_cut(micro_batch: int) -> None:
    """Promise D2. The numbers of learnt tokens in the rows are very unequal."""
    model = Decoder(ModelConfig(**SHAPE)).requires_grad_(True)
    penalty = quadratic(list(model.parameters()), 3.0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01
    rows = Counting().read(range(8))

    def measured(model: Decoder, rows: Any) -> Measured:
        total = next_token_loss(model, rows)
        return Measured(total, {"twice": 2 * total})

    plain = take_gradient(model, rows, next_token_loss)
    expected = [parameter.grad.clone() + 3.0 * 0.01 for parameter in model.parameters()]
    model.zero_grad()
    found = take_gradient(
        model, rows, penalised(measured, penalty), micro_batch=micro_batch, measures=("twice", PENALTY)
    )
    size = sum(parameter.numel() for parameter in model.parameters())
    assert found.measures[PENALTY] == pytest.approx(1.5 * size * 1e-4, rel=1e-4)
    assert found.loss - found.measures[PENALTY] == pytest.approx(plain.loss, rel=1e-5)
    assert found.measures["twice"] == pytest.approx(2 * plain.loss, rel=1e-5)
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


def content(folder: Path, run: str, keep: dict[str, Any] | None, **sections: Any) -> dict[str, Any]:
    """A recipe in `folder`, which gets a base that has a place for its chat template, conversations and old text."""
    if not (folder / "base").exists():
        save(
            Decoder(CONFIG.model_copy(update={"vocab_size": base_tokenizer(3).vocab_size}), seed=1),
            base_tokenizer(3),
            folder / "base",
            about=About(base="nothing"),
        )
        write_lines(folder / "chats.jsonl", about_towns(72))
        write_book(folder / "old.txt", 40)
    return {
        "run": str(folder / run),
        "base": str(folder / "base"),
        "precision": "float32",
        "data": {"train": str(folder / "chats.jsonl"), "context": 64, "validation_fraction": 0.2},
        "keep": keep,
        "optim": {"lr": 0.003, "warmup": 2},
        "train": {"steps": 12, "batch": 4, "evaluate_every": 12, "save_every": 5},
        "report": {"questions": 1, "max_tokens": 4},
        **sections,
    }


def tuned(content: dict[str, Any], say: Any = lambda line: None) -> None:
    fine_tune(parse_recipe(content, SFTRecipe, "recipe"), say=say)


@pytest.mark.parametrize(
    ("keep", "adapter"),
    [
        ({"penalty": "l2", "strength": 1.0}, None),
        ({"penalty": "l2", "strength": 1.0}, {"rank": 2}),
        ({"penalty": "ewc", "strength": 10.0, "data": "old.txt", "rows": 6}, None),
        ({"penalty": "fip", "strength": 10.0, "data": "old.txt", "rows": 6}, None),
        ({"penalty": "fip", "strength": 10.0, "data": "old.txt", "rows": 6}, {"rank": 2}),
    ],
)
def test_a_run_that_was_stopped_goes_on_bit_for_bit(
    keep: dict[str, Any], adapter: dict[str, Any] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The start and the Fisher information are there again, and the metric of the path."""
    if "data" in keep:
        keep = {**keep, "data": str(tmp_path / keep["data"])}
    moves = Supervised.step

    def stops(self: Supervised, trainer: Trainer, number: int) -> Moved:
        if number == 8:
            raise KeyboardInterrupt
        return moves(self, trainer, number)

    for name in ("whole", "stopped"):
        recipe = content(tmp_path, name, keep, adapter=adapter)
        if name == "stopped":
            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(Supervised, "step", stops)
                tuned(recipe)
        tuned(recipe)
    file = "adapter_model.safetensors" if adapter else "model.safetensors"
    left, right = ((tmp_path / name / "final" / file).read_bytes() for name in ("whole", "stopped"))
    assert left == right
    penalties = [line[PENALTY] for line in read_metrics(tmp_path / "whole") if PENALTY in line]
    if keep["penalty"] != "fip":
        assert penalties[0] == 0 and min(penalties[1:]) > 0 and len(penalties) == 12


def test_each_keeps_the_model_nearer_in_its_own_measure(tmp_path: Path) -> None:
    """l2: the weights. ewc and fip: what is said to old text."""
    old = {"data": str(tmp_path / "old.txt")}
    said: list[str] = []
    for name, keep in {
        "plain": None,
        "l2": {"penalty": "l2", "strength": 1.0},
        "ewc": {"penalty": "ewc", "strength": 1e4, "rows": 24, **old},
        "fip": {"penalty": "fip", "strength": 100.0, "rows": 24, **old},
    }.items():
        tuned(content(tmp_path, name, keep), said.append)
    assert "keep fip, of strength 100" in said
    base = open_policy(str(tmp_path / "base"))[0]
    runs = {name: pellucid.load(tmp_path / name)[0] for name in ("plain", "l2", "ewc", "fip")}
    away = {name: distance(model, base) for name, model in runs.items()}
    assert away["l2"] < 0.5 * away["plain"]
    other = {name: divergence(model, base, tmp_path) for name, model in runs.items()}
    assert other["ewc"] < 0.8 * other["plain"] and other["fip"] < 0.8 * other["plain"], other


def distance(model: Decoder, base: Decoder) -> float:
    pairs = zip(model.parameters(), base.parameters(), strict=True)
    return float(torch.cat([(one - other).detach().flatten() for one, other in pairs]).norm())


@torch.no_grad()
def divergence(model: Decoder, base: Decoder, folder: Path) -> float:
    """KL between what the base says to old text and what the model says, a token."""
    ids = base_tokenizer(3).encode((folder / "old.txt").read_text()[:4000])
    tokens = torch.tensor(ids[: len(ids) // 64 * 64]).view(-1, 64)
    was, now = (m(tokens).double().log_softmax(-1) for m in (base, model))
    return float((was.exp() * (was - now)).sum(-1).mean())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("keep={penalty: none, strength: 1}", "keep.penalty = 'none'"),
        ("keep={penalty: l2}", "the field 'keep.strength' is missing"),
        ("keep={penalty: l2, strength: 0}", "keep.strength = 0"),
        ("keep={penalty: l2, strength: -1.0}", "keep.strength = -1.0"),
        ("keep={penalty: l2, strength: 1, data: old.txt}", "penalty = l2 reads no old text: leave out data"),
        ("keep={penalty: l2, strength: 1, rows: 9}", "penalty = l2 reads no old text: leave out rows"),
        ("keep={penalty: ewc, strength: 1}", "keep.penalty = ewc reads old text: give it as keep.data, or"),
        ("keep={penalty: fip, strength: 1}", "keep.penalty = fip reads old text: give it as keep.data, or"),
        ("keep={penalty: fip, strength: 1, data: nowhere.txt}", "nowhere.txt"),
        ("keep={penalty: fip, strength: 1, rows: 0, data: x}", "keep.rows = 0"),
        ("keep={penalty: fip, strngth: 1}", "(did you mean 'strength'?)"),
        ("keep={penalty: ewc, strength: 1, data: {folder}/few.txt}", "do not fill one row of 64"),
    ],
)
def test_what_is_asked_wrongly_is_one_sentence(
    change: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content(tmp_path, "run", None)))
    (tmp_path / "few.txt").write_text("Too little.")
    assert command(["sft", str(tmp_path / "recipe.yaml"), change.replace("{folder}", str(tmp_path))]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert message in said and said.startswith("error: ")


def test_ewc_and_an_adapter_do_not_go_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep = {"penalty": "ewc", "strength": 1.0, "data": str(tmp_path / "old.txt")}
    recipe = content(tmp_path, "run", keep, adapter={"rank": 2})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert command(["sft", str(tmp_path / "recipe.yaml")]) == 2
    assert "choose l2 or fip, or leave out adapter" in capsys.readouterr().err.splitlines()[-1]


def test_old_text_is_that_of_replay_unless_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[InvariantPath] = []
    monkeypatch.setattr(InvariantPath, "hold", lambda path: held.append(path))
    keep = {"penalty": "fip", "strength": 1.0, "rows": 4}
    recipe = content(tmp_path, "run", keep)
    recipe["data"]["replay"] = {"data": str(tmp_path / "old.txt"), "fraction": 0.5}
    recipe["train"]["steps"] = 3
    tuned(recipe)
    assert (tmp_path / "run/data/replay").is_dir() and not (tmp_path / "run/data/keep").exists()
    assert len(held) == 1  # the pre-flight holds what a step will
