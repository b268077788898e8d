"""Saves are whole or not at all: killed at any moment, refused by the disk, or beside other things."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pellucid.checkpoints import atomic
from pellucid.checkpoints.atomic import atomic_file, atomic_folder
from pellucid.checkpoints.folder import read_folder
from pellucid.checkpoints.gguf_models import read_gguf
from pellucid.checkpoints.gguf_save import save_gguf
from pellucid.checkpoints.save import save
from pellucid.errors import InputError, PellucidError
from tests.checkpoints.tiny import CONFIGS, random_model, same_weights, tiny_tokenizer
from tests.disk import largest_file

SAVER = """
import sys, time
from pathlib import Path
from pellucid.checkpoints.save import About, save
from pellucid.checkpoints.gguf_save import save_gguf
from tests.checkpoints.tiny import CONFIGS, random_model, tiny_tokenizer
model, tokenizer, folder = random_model(CONFIGS["llama"]), tiny_tokenizer(), Path(sys.argv[1])
step = int(sys.argv[2])
started = None
while True:
    if started is None:
        started = time.perf_counter()
    elif started > 0:
        print(time.perf_counter() - started, flush=True)
        started = -1
    step += 1
    model.final_norm.weight.data.fill_(step)
    save(model, tokenizer, folder / "model", about=About(steps=step), shard_bytes=50_000)
    save_gguf(model, tokenizer, folder / "model.gguf", about=About(steps=step), kind="f32")
"""


def kill_a_saver(folder: Path, step: int, after: float) -> None:
    """Starts a saver and kills it when it has saved once, at `after` times as long as that took."""
    process = subprocess.Popen([sys.executable, "-c", SAVER, str(folder), str(step)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    time.sleep(after * float(process.stdout.readline()))
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()


def test_a_killed_save_leaves_the_model_before_or_the_one_after(tmp_path: Path) -> None:
    """What is found is whole, and never older than the last save that was done."""
    model, clock = random_model(CONFIGS["llama"]), random.Random(0)
    model.final_norm.weight.data.fill_(0)
    save(model, tiny_tokenizer(), tmp_path / "model")
    save_gguf(model, tiny_tokenizer(), tmp_path / "model.gguf", kind="f32")
    last = 0
    for _ in range(5):
        kill_a_saver(tmp_path, last, clock.uniform(0, 2))
        for found in (read_folder(tmp_path / "model")[0], read_gguf(tmp_path / "model.gguf")[0]):
            steps = found.final_norm.weight.unique().tolist()
            assert len(steps) == 1 and steps[0] > last
            for mine, theirs in zip(model.blocks.parameters(), found.blocks.parameters(), strict=True):
                assert mine.equal(theirs)
        last = int(steps[0])
    left = [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")]
    assert len(left) <= 2  # of the last kill alone: each save removes what killed ones left
    save(model, tiny_tokenizer(), tmp_path / "model")
    save_gguf(model, tiny_tokenizer(), tmp_path / "model.gguf")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model", "model.gguf"]


def test_a_disk_that_refuses_leaves_what_was_there(tmp_path: Path) -> None:
    old, new, tokenizer = random_model(CONFIGS["llama"]), random_model(CONFIGS["gpt2"]), tiny_tokenizer()
    save(old, tokenizer, tmp_path / "model")
    save_gguf(old, tokenizer, tmp_path / "model.gguf", kind="f32")
    for limit in (100, 10_000, 200_000):
        untouched = r"model could not be written .* what was there is untouched"
        with largest_file(limit), pytest.raises(PellucidError, match=untouched):
            save(new, tokenizer, tmp_path / "model")
        with largest_file(limit), pytest.raises(PellucidError, match=r"model.gguf could not be written"):
            save_gguf(new, tokenizer, tmp_path / "model.gguf", kind="f32")
    assert same_weights(old, read_folder(tmp_path / "model")[0])
    assert same_weights(old, read_gguf(tmp_path / "model.gguf")[0])
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model", "model.gguf"]


def test_a_full_disk_is_called_so(tmp_path: Path) -> None:
    said = pytest.raises(PellucidError, match=r"x could not be written \(the disk is full\)")
    with said, atomic_file(tmp_path / "x"):
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("swaps", [True, False])
def test_a_folder_is_replaced_with_or_without_the_systems_help(
    swaps: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not swaps:
        monkeypatch.setattr(atomic.sys, "platform", "other")
    target = tmp_path / "deep" / "target"
    for content in ("one", "two"):
        with atomic_folder(target) as temporary:
            (temporary / "inner").mkdir()
            (temporary / "inner" / content).write_text(content)
        assert [path.name for path in target.rglob("*") if path.is_file()] == [content]
    assert [path.name for path in target.parent.iterdir()] == ["target"]


def test_a_folder_put_aside_by_a_killed_save_comes_back(tmp_path: Path) -> None:
    """Where two folders cannot be swapped in one step, a kill between the two renames leaves the old one aside."""
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    target = tmp_path / "target"
    temporary = atomic._temporary(target)
    left = temporary.with_name(temporary.name.replace(str(os.getpid()), gone.stdout.strip()))
    aside = left.with_name(left.name + ".old")
    for folder, content in ((left, "new"), (aside, "old")):
        folder.mkdir()
        (folder / content).touch()
    with pytest.raises(KeyboardInterrupt), atomic_folder(target):
        raise KeyboardInterrupt  # the next save does not come to its end either
    assert [path.name for path in target.iterdir()] == ["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_an_interrupted_block_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "target") as temporary:
        (temporary / "half").touch()
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_another_save_that_still_runs_is_left_alone(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "x") as mine:
        mine.write_text("mine")
        other = mine.with_name(mine.name.removesuffix(str(os.getpid())) + str(os.getppid()))
        other.write_text("theirs")
    with atomic_file(tmp_path / "x") as mine:
        mine.write_text("mine again")
    assert other.read_text() == "theirs" and (tmp_path / "x").read_text() == "mine again"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    model, tokenizer = random_model(CONFIGS["llama"]), tiny_tokenizer()
    with pytest.raises(PellucidError, match=r"file/model could not be written"):
        save(model, tokenizer, tmp_path / "file" / "model")
    with pytest.raises(InputError, match=r"is a folder; give the name of a file"):
        save_gguf(model, tokenizer, tmp_path)
