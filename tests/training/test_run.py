"""The run folder: one writer, one recipe, the newest whole checkpoints, and a model for whoever opens it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import pellucid
from pellucid.checkpoints.save import About
from pellucid.cli.app import run as command
from pellucid.errors import InputError
from pellucid.training.recipe import PretrainRecipe, parse_recipe, read_recipe
from pellucid.training.run import RunFolder, compare
from pellucid.training.saved import WholeModel
from tests.checkpoints.tiny import CONFIGS, random_model, same_weights, tiny_tokenizer
from tests.training.tiny_run import recipe, save_step

OWNER = """
import os, sys, time
from pellucid.training.saved import WholeModel
from pellucid.training.run import RunFolder
from tests.training.tiny_run import recipe
run = RunFolder.open(sys.argv[1], recipe())
child = os.fork()
if child:  # the parent alone prints
    print(child, flush=True)
time.sleep(60)
"""


def steps(folder: Path) -> list[str]:
    """The names of all that is in `checkpoints/`, hidden or not."""
    return sorted(entry.name for entry in (folder / "checkpoints").iterdir())


def test_a_second_run_into_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path / "run", recipe()):
        said = pytest.raises(
            InputError, match=rf"run is in use by process {os.getpid()} on .*: wait for that run to end"
        )
        with said as caught:
            RunFolder.open(tmp_path / "run", recipe())
        assert caught.value.exit_status == 2
    RunFolder.open(tmp_path / "run", recipe()).close()


def test_a_killed_owner_leaves_no_lock_even_when_its_child_lives_on(tmp_path: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    child = int(owner.stdout.readline())
    try:
        with pytest.raises(InputError, match=f"in use by process {owner.pid} "):
            RunFolder.open(tmp_path / "run", recipe())
        owner.kill()
        owner.wait()
        os.kill(child, 0)  # it lives
        RunFolder.open(tmp_path / "run", recipe()).close()
    finally:
        os.kill(child, signal.SIGKILL)
        owner.stdout.close()


def test_the_recipe_is_written_whole_and_comes_back(tmp_path: Path) -> None:
    given = recipe(optim={"lr": 3e-4}, train={"steps": 7, "sample_prompts": ["Once upon a time – in Überlingen: "]})
    RunFolder.open(tmp_path / "run", given).close()
    content = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert content["optim"]["betas"] == [0.9, 0.95]  # fields that nobody set are there too
    assert parse_recipe(content, PretrainRecipe, "config.yaml") == given


def test_a_switch_is_a_word_here_whatever_yaml_makes_of_it(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe().model_dump(mode="json") | {"compile": "auto"}))
    given = [read_recipe(tmp_path / "recipe.yaml", [f"compile={word}"], PretrainRecipe) for word in ("off", "'off'")]
    assert [one.compile for one in given] == ["off", "off"]
    for one in given:
        RunFolder.open(tmp_path / "run", one).close()
    with pytest.raises(InputError, match="compile = 1: input should be 'auto', 'on' or 'off'"):
        read_recipe(tmp_path / "recipe.yaml", ["compile=1"], PretrainRecipe)


def test_resuming_with_another_recipe_shows_each_difference(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path / "run", recipe()) as run:
        save_step(run, 1, random_model(CONFIGS["llama"]))
    before = (tmp_path / "run/config.yaml").read_bytes()
    other = recipe(optim={"lr": 0.001}, model={"num_layers": 3, "hidden_size": 64}, data={"train": ["a", "b"]})
    with pytest.raises(InputError) as caught:
        RunFolder.open(tmp_path / "run", other)
    assert (
        "begun with another recipe (data.train: [book.txt] -> [a, b]; optim.lr: 0.0003 -> 0.001; "
        "model.num_layers: 2 -> 3; model.hidden_size: not set -> 64): choose another run folder" in str(caught.value)
    )
    assert caught.value.exit_status == 2 and (tmp_path / "run/config.yaml").read_bytes() == before
    RunFolder.open(tmp_path / "run", recipe()).close()  # the refusal kept no lock


def test_before_the_first_checkpoint_the_recipe_may_change(tmp_path: Path) -> None:
    """The run may have stopped for an error in it. The tokenizer was learnt by the recipe that is gone."""
    RunFolder.open(tmp_path / "run", recipe()).close()
    (tmp_path / "run/tokenizer").mkdir()
    RunFolder.open(tmp_path / "run", recipe(train={"steps": 100, "keep": 5})).close()
    assert (tmp_path / "run/tokenizer").is_dir()
    RunFolder.open(tmp_path / "run", recipe(data={"train": "other.txt"})).close()
    assert not (tmp_path / "run/tokenizer").exists()
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["data"]["train"] == ["other.txt"]


def test_what_no_weight_depends_on_may_change_and_is_written_down(tmp_path: Path) -> None:
    RunFolder.open(tmp_path / "run", recipe()).close()
    harmless: dict[str, Any] = {"steps": 100, "keep": 5, "save_every": 9, "sample_prompts": ["a", "b"], "explode": 9}
    bands = {"loss": [{"step": 5, "low": 1.0, "high": 2.0}]}
    with RunFolder.open(tmp_path / "run", recipe(run="elsewhere", train=harmless, expect=bands)) as run:
        assert run.keep == 5
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["train"]["save_every"] == 9


def test_fields_that_have_come_since_have_their_defaults(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path / "run", recipe()) as run:
        save_step(run, 1, random_model(CONFIGS["llama"]))
    file = tmp_path / "run/config.yaml"
    content = yaml.safe_load(file.read_text())
    del content["optim"]["eps"], content["seed"]
    file.write_text(yaml.safe_dump(content))
    RunFolder.open(tmp_path / "run", recipe()).close()
    with pytest.raises(InputError, match=r"\(seed: 0 -> 3\)"):
        RunFolder.open(tmp_path / "run", recipe(seed=3))


@pytest.mark.parametrize(
    ("was", "now", "differences"),
    [
        ({"a": {}}, {"a": {}}, []),
        ({"a": {}}, {"a": {"b": None}}, ["a: {} -> not set", "a.b: not set -> null"]),
        ({"a": "x: y"}, {"a": 0.1}, ["a: 'x: y' -> 0.1"]),
        ({"train": {"keep": 1}, "expect": 3}, {"expect": {"time": "long"}}, []),
        ({"runs": 1}, {"runs": 2}, ["runs: 1 -> 2"]),  # `run` may differ; what begins like it may not
    ],
)
def test_differences(was: dict[str, Any], now: dict[str, Any], differences: list[str]) -> None:
    assert compare(was, now) == differences


@pytest.mark.parametrize("content", ["", "- a\n- b\n", "a: [", "\0"])
def test_a_recipe_that_is_one_no_more_is_named(content: str, tmp_path: Path) -> None:
    RunFolder.open(tmp_path / "run", recipe()).close()
    (tmp_path / "run/config.yaml").write_text(content)
    with pytest.raises(InputError, match=r"config.yaml: this is no recipe of a run any more"):
        RunFolder.open(tmp_path / "run", recipe())


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match=r"holds 'thesis.tex', and no run: choose another run folder"):
        RunFolder.open(tmp_path, recipe())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(InputError, match=r"thesis.tex' is a file; give the name of a folder"):
        RunFolder.open(tmp_path / "thesis.tex", recipe())


def test_a_run_killed_before_its_recipe_was_written_begins_again(tmp_path: Path) -> None:
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "run/.lock").touch()
    (tmp_path / "run/.config.yaml.partial-elsewhere-12").touch()
    RunFolder.open(tmp_path / "run", recipe()).close()
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".lock", "checkpoints", "config.yaml"]


def test_the_newest_are_kept(tmp_path: Path) -> None:
    model = random_model(CONFIGS["llama"])
    with RunFolder.open(tmp_path / "run", recipe(train={"steps": 100, "keep": 2})) as run:
        assert run.newest_checkpoint() is None
        for step in (5, 10, 100, 20):  # by number, not by name; later ones than the newest are of no use
            save_step(run, step, model)
        assert steps(run.path) == ["step-10", "step-20"]
        (run.path / "checkpoints/step-10/state.json").unlink()
        (run.path / "checkpoints/step-20/config.json").write_text("{}")
        with pytest.warns(UserWarning) as warned:
            assert run.newest_checkpoint() is None
        assert len(warned) == 2
        save_step(run, 30, model)
        save_step(run, 40, model)
        assert steps(run.path) == ["step-30", "step-40"]  # the broken ones did not count as kept


@pytest.mark.filterwarnings("error")
def test_half_a_checkpoint_is_invisible_and_removed_by_the_next_save(tmp_path: Path) -> None:
    """Also one of another machine: who has the lock is alone."""
    half = tmp_path / "run/checkpoints/.step-20.partial-elsewhere-17"
    with RunFolder.open(tmp_path / "run", recipe()) as run:
        save_step(run, 10, random_model(CONFIGS["llama"]))
        half.mkdir()
        (half / "config.json").write_text("{}")
        newest = run.newest_checkpoint()
        assert newest is not None and newest.step == 10
        save_step(run, 15, random_model(CONFIGS["llama"]))
        assert steps(run.path) == ["step-10", "step-15"]
        half.mkdir()
    RunFolder.open(tmp_path / "run", recipe()).close()
    assert not half.exists()


def test_a_run_folder_is_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, model = tmp_path / "run", random_model(CONFIGS["llama"])
    with RunFolder.open(folder, recipe()) as run:
        with pytest.raises(InputError, match="this run has saved no model yet"):
            pellucid.load(folder)
        save_step(run, 10, model)
        save_step(run, 20, model)
        assert pellucid.load(folder)[0].final_norm.weight.unique().tolist() == [20]
        assert command(["show", str(folder)]) == 0
        told = " ".join(capsys.readouterr().out.split())
        assert "run, step 20 of a run that has not ended" in told and "steps 20 tokens seen 200 last loss 1.5" in told
        (folder / "checkpoints/step-20/model.safetensors").write_bytes(b"half")
        with pytest.warns(UserWarning, match=r"step-20 is passed over, .*: model.safetensors has 4 bytes instead of"):
            assert pellucid.load(folder)[0].final_norm.weight.unique().tolist() == [10]
        final = random_model(CONFIGS["gpt2"])
        assert run.save_final(WholeModel(final, tiny_tokenizer()), About(base="smollm2", steps=30)) == folder / "final"
    assert same_weights(pellucid.load(folder)[0], final)
    assert command(["show", str(folder)]) == 0
    told = capsys.readouterr().out
    assert "run, the end of the run" in " ".join(told.split()) and "smollm2" in told
