"""A checkpoint gives back, bit for bit, what was saved; and no kill and no full disk leaves half of one."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

from pellucid.checkpoints.save import About
from pellucid.cli.app import run as command
from pellucid.errors import InputError, PellucidError
from pellucid.models.config import ModelConfig
from pellucid.models.decoder import Decoder
from pellucid.training.optimizers import Optimizers, make_optimizer
from pellucid.training.recipe import OptimRecipe
from pellucid.training.run import RunFolder, newest_checkpoint
from pellucid.training.saved import WholeModel
from tests.checkpoints.tiny import CONFIGS, SIZES, random_model, same_weights, tiny_tokenizer
from tests.disk import largest_file
from tests.training.tiny_run import Holder, filled, recipe, save_step

OWN = ModelConfig(**SIZES, position="alibi", activation="relu", norm_position="post")  # no published family has it

KILLS = """
import json, os, random, signal, sys, time, warnings
from pathlib import Path
import torch
from pellucid.models.decoder import Decoder
from pellucid.training.run import RunFolder
from pellucid.training.saved import WholeModel
from tests.checkpoints.tiny import CONFIGS, random_model, tiny_tokenizer
from tests.training.tiny_run import Holder, recipe, save_step

warnings.simplefilter("error")  # a checkpoint that is passed over, for instance
torch.set_num_threads(1)
folder, kills = Path(sys.argv[1]), int(sys.argv[2])
model, clock = random_model(CONFIGS["llama-tied-wide-heads"]), random.Random(0)
for parameter in model.parameters():
    parameter.requires_grad_(False)

def save_until_killed(said):
    with RunFolder.open(folder, recipe()) as run:
        newest = run.newest_checkpoint()
        step = newest.step if newest else 0
        os.write(said, b"0\\n")
        while True:
            step += 1
            save_step(run, step, model)
            os.write(said, f"{step}\\n".encode())

last = inside = took = 0
for number in range(kills):
    heard, said = os.pipe()
    child = os.fork()
    if child == 0:
        save_until_killed(said)
    os.close(said)
    with os.fdopen(heard) as pipe:
        pipe.readline()
        if number == 0:  # how long two saves take here and now
            began = time.monotonic()
            last = [int(pipe.readline()) for _ in range(2)][-1]
            took = time.monotonic() - began
        time.sleep(clock.uniform(0, took))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        saved = max([last, *map(int, pipe.read().split())])
    inside += any(path.name.startswith(".step") for path in folder.glob("checkpoints/*"))
    with RunFolder.open(folder, recipe()) as run:
        newest = run.newest_checkpoint()
        if newest is None:
            assert saved == 0
            continue
        assert newest.step in (saved, saved + 1), (newest.step, saved)
        holder, found = Holder(), Decoder(model.config)
        whole = WholeModel(found, tiny_tokenizer())
        assert newest.restore(whole, holder) == {"step": newest.step, "tokens": newest.step * 10}
        values = torch.cat([x.flatten() for x in [*found.parameters(), *holder.tensors.values()]]).unique()
        assert values.tolist() == [newest.step]
        last = newest.step
print(json.dumps({"saves": last, "inside": inside, "took": took}))
"""


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [("llama", "muon"), ("llama-tied-wide-heads", "adamw"), ("gpt2", "adamw"), ("gemma3", "muon"), ("own", "adamw")],
)
@pytest.mark.filterwarnings("ignore:no published family")
def test_the_step_after_a_resume_is_the_step_without_one(name: str, optimizer: str, tmp_path: Path) -> None:
    """Weights, tied or not, and optimizer state come back bit for bit (promise M1)."""
    config = OWN if name == "own" else CONFIGS[name]
    optim = OptimRecipe.model_validate({"optimizer": optimizer, "lr": 0.01})

    def take_steps(model: Decoder, optimizers: Optimizers, count: int) -> None:
        for number in range(count):
            tokens = torch.arange(number, number + 12)[None]
            model(tokens).logsumexp(-1).mean().backward()
            optimizers.step(1.0)
            optimizers.zero_grad()

    model = random_model(config)
    optimizers = make_optimizer(model, optim)
    take_steps(model, optimizers, 2)
    with RunFolder.open(tmp_path / "run", recipe()) as run:
        state = {"tokens": 17, "mean": 0.1 + 0.2, "words": ["a", None]}
        run.save_checkpoint(2, WholeModel(model, tiny_tokenizer()), optimizers, state, About(steps=2))
        checkpoint = run.newest_checkpoint()
    assert checkpoint is not None
    other = Decoder(config, seed=9)
    others = make_optimizer(other, optim)
    assert checkpoint.restore(WholeModel(other, tiny_tokenizer()), others) == {"step": 2, **state}
    assert same_weights(model, other) and (other.head is None) == config.tie_embeddings
    assert checkpoint.tokenizer.vocab_size == 266
    take_steps(model, optimizers, 2)
    take_steps(other, others, 2)
    assert same_weights(model, other)


def test_a_checkpoint_is_a_model_folder_for_transformers(tmp_path: Path) -> None:
    model = random_model(CONFIGS["llama"])
    with RunFolder.open(tmp_path / "run", recipe()) as run:
        path = run.save_checkpoint(1, WholeModel(model, tiny_tokenizer()), Holder(), {}, About(steps=1)).path
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(path, dtype="auto", output_loading_info=True)
    assert not any(report.values())
    tokens = torch.arange(7, 31)[None]
    with torch.no_grad():
        assert torch.allclose(theirs.eval()(tokens).logits, model(tokens), atol=1e-4)
    assert not [file.name for file in path.iterdir() if file.suffix in (".bin", ".pt", ".pkl")]


def test_a_checkpoint_of_another_model_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path / "run", recipe()) as run:
        checkpoint = save_step(run, 1, random_model(CONFIGS["llama"]))
    other, holder = filled(random_model(CONFIGS["qwen3"]), 7), Holder(7)
    with pytest.raises(InputError, match=r"step-1 holds a model of another config than the recipe's"):
        checkpoint.restore(WholeModel(other, tiny_tokenizer()), holder)
    assert {x for parameter in other.parameters() for x in parameter.unique().tolist()} == {7}
    assert holder.tensors["blocks.0.w.step"] == 7


def test_a_run_killed_at_any_moment_has_exactly_what_it_saved_last(tmp_path: Path) -> None:
    """Promise D7: SIGKILL at random moments, most of them inside a save."""
    done = subprocess.run(
        [sys.executable, "-c", KILLS, str(tmp_path / "run"), "40"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["inside"] >= 10 and told["saves"] >= 10
    left = [path.name for path in (tmp_path / "run/checkpoints").iterdir()]
    assert len(left) <= 3 and not any(name.startswith(".") for name in left)


@pytest.mark.parametrize("limit", [100, 10_000, 200_000, 600_000])
def test_a_full_disk_is_one_sentence_and_the_run_resumes(limit: int, tmp_path: Path) -> None:
    model = random_model(CONFIGS["llama"])
    with RunFolder.open(tmp_path / "run", recipe()) as run:
        save_step(run, 10, model)
        with largest_file(limit), pytest.raises(PellucidError) as caught:
            big = {"w.exp_avg": torch.ones(200_000)}
            holder = Holder()
            holder.load_state_tensors(big)
            run.save_checkpoint(20, WholeModel(filled(model, 20), tiny_tokenizer()), holder, {}, About())
    assert caught.value.exit_status == 1
    assert "step-20 could not be written (" in str(caught.value) and "make room" in str(caught.value)
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-10"]
    with RunFolder.open(tmp_path / "run", recipe()) as run:
        newest = run.newest_checkpoint()
        assert newest is not None
        assert newest.restore(WholeModel(model, tiny_tokenizer()), Holder()) == {
            "step": 10,
            "tokens": 100,
        }
        assert model.final_norm.weight.unique().tolist() == [10]
        save_step(run, 20, model)


def test_a_disk_that_is_full_at_the_last_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems say it only when asked to put on the disk what they took."""

    def refuse(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with RunFolder.open(tmp_path / "run", recipe()) as run:
        save_step(run, 10, random_model(CONFIGS["llama"]))
        with monkeypatch.context() as patch, pytest.raises(PellucidError, match=r"\(the disk is full\); make room"):
            patch.setattr(os, "fsync", refuse)
            save_step(run, 20, random_model(CONFIGS["llama"]))
        newest = run.newest_checkpoint()
        assert newest is not None and newest.step == 10


def test_an_interrupted_save_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with RunFolder.open(tmp_path / "run", recipe()) as run:
        save_step(run, 10, random_model(CONFIGS["llama"]))
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(os, "fsync", interrupt)
            save_step(run, 20, random_model(CONFIGS["llama"]))
        assert [path.name for path in (run.path / "checkpoints").iterdir()] == ["step-10"]


def test_a_checkpoint_with_a_file_missing_is_skipped_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = random_model(CONFIGS["llama"])
    with RunFolder.open(tmp_path / "run", recipe(train={"steps": 100, "keep": 3})) as run:
        for step in (10, 20, 30):
            save_step(run, step, model)
    (tmp_path / "run/checkpoints/step-30/state.safetensors").unlink()
    flipped = tmp_path / "run/checkpoints/step-20/model.safetensors"
    content = bytearray(flipped.read_bytes())
    content[-1] ^= 1
    flipped.write_bytes(content)
    with pytest.warns(UserWarning) as warned:
        newest = newest_checkpoint(tmp_path / "run")
    assert newest is not None and newest.step == 10
    assert [str(warning.message).split("checkpoints/")[1] for warning in warned] == [
        "step-30 is passed over, because it is not whole: state.safetensors is missing",
        "step-20 is passed over, because it is not whole: model.safetensors is not what was written "
        "(its checksum differs)",
    ]
    with pytest.warns(UserWarning, match="step-30 is passed over"):
        assert command(["show", str(tmp_path / "run")]) == 0
    assert "step 20 of a run that has not ended" in " ".join(capsys.readouterr().out.split())  # sizes alone are read
