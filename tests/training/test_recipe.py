"""Recipes: read, overridden, and answered with one sentence wherever they are wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pellucid.alignment.constitution_recipe import ConstitutionRecipe
from pellucid.alignment.dpo_recipe import DPORecipe
from pellucid.alignment.grpo_recipe import GRPORecipe
from pellucid.alignment.ppo_recipe import PPORecipe
from pellucid.alignment.recipe import SFTRecipe
from pellucid.alignment.reward_recipe import RewardRecipe
from pellucid.cli.app import run as command
from pellucid.errors import InputError
from pellucid.training.recipe import PretrainRecipe, parse_recipe, read_recipe

TEXT = """
run: runs/a
data: {train: book.txt}
model: {hidden_size: 32, num_layers: 2, num_heads: 4, intermediate_size: 48}
train: {steps: 200}
"""


def read(folder: Path, *overrides: str, text: str = TEXT) -> PretrainRecipe:
    (folder / "r.yaml").write_text(text)
    return read_recipe(folder / "r.yaml", overrides, PretrainRecipe)


def test_what_is_not_said_has_its_default_and_what_is_said_is_taken(tmp_path: Path) -> None:
    recipe = read(
        tmp_path, "optim.lr=3e-4", "data.train=[a.txt, b.txt]", "train.steps=null", "train.epochs=1.5", "seed=7",
        "optim.betas=[0.8, 95e-2]", "model.norm_eps=1e-6", "compile=off", "train.sample_prompts=['one, two: three']",
        "expect.loss=[{step: 10, low: 1, high: 2}]", "tokenizer.path=~/a model",
    )  # fmt: skip
    assert recipe.optim.lr == 3e-4 and recipe.optim.betas == (0.8, 0.95) and recipe.optim.weight_decay == 0.1
    assert recipe.data.train == ("a.txt", "b.txt") and recipe.train.epochs == 1.5 and recipe.train.steps is None
    assert recipe.model["norm_eps"] == 1e-6 and recipe.seed == 7 and recipe.compile == "off"
    assert recipe.train.sample_prompts == ("one, two: three",) and recipe.expect.loss[0].high == 2
    assert recipe.tokenizer.path == "~/a model" and read(tmp_path).data.train == ("book.txt",)


def test_a_section_that_the_file_has_not_can_be_set(tmp_path: Path) -> None:
    assert read(tmp_path, "optim.warmup=3").optim.warmup == 3
    assert read(tmp_path, "model.rope.theta=5").model["rope"] == {"theta": 5}


WRONG: list[tuple[tuple[str, ...], str]] = [
    (("optm.lr=1",), "there is no field 'optm' (did you mean 'optim'?)"),
    (("optim.wramup=1",), "there is no field 'optim.wramup' (did you mean 'warmup'?)"),
    (("optim.speed=1",), "there is no field 'optim.speed'; there are optimizer, lr, matrix_lr, betas"),
    (("lr=1",), "there is no field 'lr' (did you mean 'optim.lr'?)"),
    (("expect.loss=[{stp: 3, low: 1, high: 2}]",), "there is no field 'expect.loss.0.stp' (did you mean 'step'?)"),
    (("train.steps=soon",), "train.steps = 'soon': input should be a valid integer"),
    (("train.batch=2.5",), "train.batch = 2.5: input should be a valid integer"),
    (("train.batch=0",), "train.batch = 0: input should be greater than 0"),
    (("train.epochs=1",), "train: give either steps or epochs, and null for the other"),
    (("train.steps=null",), "train: give either steps or epochs, and null for the other"),
    (("optim.lr=.inf",), "optim.lr = inf: input should be a finite number"),
    (("optim.lr=nan",), "optim.lr = 'nan': input should be a finite number"),
    (("optim.betas=[0.9]",), "the field 'optim.betas.1' is missing"),
    (("optim.betas=0.9",), "optim.betas = 0.9: input should be a valid list"),
    (("optim.optimizer=sgd",), "optim.optimizer = 'sgd': input should be 'adamw' or 'muon'"),
    (("train=5",), "train = 5: this is a section; give its fields, such as train.steps"),
    (("model=llama",), "model = 'llama': this is a section; give its fields, such as model.num_layers"),
    (("data.train=",), "data.train = None: input should be a valid list"),
    (("data.train=[]",), "data.train = []: list should have at least 1 item"),
    (("data.train=5",), "data.train = 5: input should be a valid list"),
    (("data.train.x=5",), "'data.train.x=5': train is no section of the recipe"),
    (("run=5",), "run = 5: input should be a valid string"),
    (("expect.loss=[{step: 3, low: 2, high: 1}]",), "expect.loss.0: low = 2 is above high = 1"),
    (("expect.loss=[{step: 3, low: 2}]",), "the field 'expect.loss.0.high' is missing"),
    (("optim.lr",), "'optim.lr' sets nothing: write field=value, such as optim.lr=3e-4"),
    (("=5",), "'=5' sets nothing"),
    (("precision=float16",), "precision = 'float16': input should be 'auto', 'float32' or 'bfloat16'"),
]


@pytest.mark.parametrize(("overrides", "message"), WRONG)
def test_a_wrong_override_is_one_sentence(overrides: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, *overrides)
    assert message in str(caught.value) and "\n" not in str(caught.value) and caught.value.exit_status == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run: a\ntrain: {steps: 1\nmodel: x", r"r\.yaml:3: not YAML: expected ',' or '}'"),
        ("run: a\n\tseed: 1", r"r\.yaml:2: not YAML: found character '\\t'"),
        ("run: a\nseed: 1\nrun: b", r"r\.yaml:3: not YAML: 'run' is given twice"),
        ("run: a\ntrain:\n  steps: 1\n  steps: 2", r"r\.yaml:4: not YAML: 'steps' is given twice"),
        ("run: !!python/object:os.system a", r"r\.yaml:1: not YAML: could not determine a constructor"),
        ("", r"r\.yaml: a recipe is a YAML mapping of fields, such as 'run: runs/first'"),
        ("- run: a", r"r\.yaml: a recipe is a YAML mapping"),
        ("run: a", r"r\.yaml: the field 'data' is missing"),
        (TEXT + "3: 4", r"r\.yaml: 3 = 3: keys should be strings"),
    ],
)
def test_a_file_that_is_no_recipe(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path, text=text)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.yaml: there is no such recipe"):
        read_recipe(tmp_path / "gone.yaml", (), PretrainRecipe)
    with pytest.raises(InputError, match=r"the recipe cannot be read \(.*directory"):
        read_recipe(tmp_path, (), PretrainRecipe)
    (tmp_path / "r.yaml").write_bytes(b"run: \xff\xfe")
    with pytest.raises(InputError, match=r"r\.yaml: the recipe cannot be read \('utf-8' codec"):
        read_recipe(tmp_path / "r.yaml", (), PretrainRecipe)


def test_a_recipe_of_another_kind_says_which_field_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(TEXT)
    with pytest.raises(InputError, match="there is no field 'model'"):
        read_recipe(tmp_path / "r.yaml", ("base=smollm2",), SFTRecipe)


KINDS = {
    "pretrain": PretrainRecipe,
    "sft": SFTRecipe,
    "dpo": DPORecipe,
    "reward": RewardRecipe,
    "grpo": GRPORecipe,
    "ppo": PPORecipe,
    "constitution": ConstitutionRecipe,
}


@pytest.mark.parametrize("recipe", sorted(Path("recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_the_recipes_that_come_along_are_right(recipe: Path) -> None:
    assert read_recipe(recipe, (), KINDS[recipe.stem.split("-")[0]]).run


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
SECTIONS = ("run", "seed", "data", "optim", "train", "expect", "tokenizer", "model", "compile", "nonsense")


@given(st.sampled_from(SECTIONS), VALUES, st.sampled_from(["", "loss", "steps", "train", "betas", "sample_prompts"]))
def test_no_value_anywhere_is_more_than_one_sentence(section: str, value: Any, name: str) -> None:
    content = yaml.safe_load(TEXT)
    content[section] = {name: value} if name else value
    try:
        parse_recipe(content, PretrainRecipe, "r.yaml")
    except InputError as error:
        assert str(error).startswith("r.yaml: ")


@given(st.text(max_size=30))
def test_no_override_is_a_bug(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "read_text", lambda *_, **__: TEXT)
        try:
            read_recipe("r.yaml", [text], PretrainRecipe)
        except InputError:
            return


@given(st.text(alphabet="abc: -[]{}\n\t'\"#&*!|>%@`0", max_size=40))
def test_no_file_is_a_bug(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "read_text", lambda *_, **__: text)
        with pytest.raises(InputError):
            read_recipe("r.yaml", (), PretrainRecipe)


def test_the_command_says_it_with_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.yaml").write_text(TEXT)
    assert command(["pretrain", str(tmp_path / "r.yaml"), "optim.lrr=1"]) == 2
    said = capsys.readouterr().err
    assert said == f"error: {tmp_path / 'r.yaml'}: there is no field 'optim.lrr' (did you mean 'lr'?)\n"
