"""Runs that train an adapter: what they write opens here and in peft, they resume bit for bit, the base stays."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import pellucid
from pellucid.alignment.policy import AdapterRecipe, Reference, open_before, open_policy
from pellucid.alignment.recipe import SFTRecipe
from pellucid.alignment.sft import fine_tune, read_data
from pellucid.checkpoints.adapters import open_adapter
from pellucid.checkpoints.save import save
from pellucid.cli.app import run as command
from pellucid.models.adapters import active_adapter, adapter_off, merge_adapter, remove_adapter
from pellucid.models.decoder import Decoder
from pellucid.training.evaluate import evaluate
from pellucid.training.metrics import read_metrics
from pellucid.training.recipe import parse_recipe, read_recipe
from tests.alignment.chats import CONFIG, about_towns, save_base, write_lines
from tests.checkpoints.tiny import logits, tiny_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

LORA = {"rank": 4, "dropout": 0.1, "targets": ["q_proj", "v_proj", "down"]}
QLORA = {"rank": 4, "dora": True, "quantize": "nf4"}


def content(folder: Path, run: str = "run", adapter: dict[str, Any] | None = None, **train: Any) -> dict[str, Any]:
    """A recipe in `folder`, which gets the data and a base that has a chat template."""
    if not (folder / "base").exists():
        tokenizer = tiny_tokenizer()
        base = Decoder(CONFIG.model_copy(update={"vocab_size": tokenizer.vocab_size}), seed=1)
        save(base, tokenizer, folder / "base")
        write_lines(folder / "chats.jsonl", about_towns(48))
    return {
        "run": str(folder / run),
        "base": str(folder / "base"),
        "adapter": adapter or LORA,
        "precision": "float32",
        "data": {"train": str(folder / "chats.jsonl"), "context": 64, "validation_fraction": 0.2},
        "optim": {"lr": 0.01, "warmup": 2},
        "train": {"steps": 12, "batch": 4, "evaluate_every": 12, "save_every": 6, **train},
        "report": {"questions": 4, "max_tokens": 8},
    }


def carry_out(recipe: dict[str, Any]) -> list[str]:
    """Runs it; what it said."""
    said: list[str] = []
    fine_tune(parse_recipe(recipe, SFTRecipe, "recipe"), say=said.append)
    return said


@pytest.fixture(scope="module", params=["lora", "qlora"])
def ended(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that has ended."""
    folder = tmp_path_factory.mktemp(request.param)
    said = carry_out(content(folder, adapter={"lora": LORA, "qlora": QLORA}[request.param]))
    kind = "with LoRA of rank 4" if request.param == "lora" else "its matrices in NF4, with DoRA of rank 4"
    assert any(kind in line and "parameters are trained" in line for line in said)
    return folder


def test_it_learns_and_the_base_stays(ended: Path, tmp_path: Path) -> None:
    losses = json.loads((ended / "run/report.json").read_text())["losses"]
    assert losses["after"] < losses["before"] - 0.1
    content(tmp_path)  # the same base again
    for file in (tmp_path / "base").iterdir():
        assert (ended / "base" / file.name).read_bytes() == file.read_bytes(), file.name


def test_it_is_compared_with_its_base_as_it_was_rounded(ended: Path) -> None:
    adapter = yaml.safe_load((ended / "run/config.yaml").read_text())["adapter"]
    after, _ = pellucid.load(ended / "run")
    before = open_before(str(ended / "base"), AdapterRecipe(**adapter))
    tokens = torch.arange(7, 31)[None]
    with torch.no_grad(), adapter_off(after):
        assert torch.equal(before(tokens), after(tokens))


def test_checkpoints_and_the_end_hold_the_adapter_alone(ended: Path) -> None:
    for folder in (ended / "run/final", ended / "run/checkpoints/step-12"):
        assert (folder / "adapter_config.json").is_file() and not list(folder.glob("model*"))
    found = open_adapter(ended / "run/final")
    assert found.base == str((ended / "base").resolve()) and found.made["steps"] == 12
    assert found.made["tokens_seen"] > 0 and found.made["last_loss"] > 0


def test_what_is_loaded_is_what_was_trained(ended: Path) -> None:
    """Promise M1: the validation loss of the run was measured on the model in memory."""
    recipe = parse_recipe(yaml.safe_load((ended / "run/config.yaml").read_text()), SFTRecipe, "config.yaml")
    model, tokenizer = pellucid.load(ended / "run")
    assert active_adapter(model) == "default" and tokenizer.chat_template
    validation = read_data(recipe).validation
    assert validation is not None
    [seen] = [line["validation_loss"] for line in read_metrics(ended / "run") if "validation_loss" in line]
    assert evaluate(model, tokenizer, validation, 64).loss == pytest.approx(seen, rel=1e-5)


def test_peft_opens_the_end_of_a_run(ended: Path) -> None:
    ours, tokenizer = pellucid.load(ended / "run")
    base = AutoModelForCausalLM.from_pretrained(ended / "base", dtype=torch.float32)
    if open_adapter(ended / "run/final").quantize:  # peft is given the base as it was beside the adapter
        rounded, _ = pellucid.load(ended / "run")
        remove_adapter(rounded, "default")
        save(rounded, tokenizer, ended / "rounded")
        base = AutoModelForCausalLM.from_pretrained(ended / "rounded", dtype=torch.float32)
    theirs = PeftModel.from_pretrained(base, ended / "run/final").eval()
    with torch.no_grad():
        said = theirs(torch.arange(7, 31)[None]).logits
    assert float((logits(ours) - said).abs().max()) < 1e-5 * float(said.abs().max())
    assert AutoTokenizer.from_pretrained(ended / "run/final").chat_template == tokenizer.chat_template


@pytest.mark.parametrize("adapter", [LORA, QLORA], ids=["lora", "qlora"])
def test_a_run_that_was_cut_off_is_the_same_run(adapter: dict[str, Any], tmp_path: Path) -> None:
    """With dropout, whose chance is a function of the step."""
    carry_out(content(tmp_path, "whole", adapter))
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut/final")
    shutil.rmtree(tmp_path / "cut/checkpoints/step-12")
    (tmp_path / "cut/report.json").unlink()
    (tmp_path / "cut/config.yaml").write_text(
        (tmp_path / "whole/config.yaml").read_text().replace(str(tmp_path / "whole"), str(tmp_path / "cut"))
    )
    assert "going on after step 6" in carry_out(content(tmp_path, "cut", adapter))
    for name in ("final/adapter_model.safetensors", "checkpoints/step-12/state.safetensors", "report.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_blocks_that_are_computed_again_drop_the_same(tmp_path: Path) -> None:
    for name, again in (("kept", False), ("again", True)):
        carry_out(content(tmp_path, name, activation_checkpointing=again))
    one, other = (
        [line["loss"] for line in read_metrics(tmp_path / name) if "loss" in line] for name in ("kept", "again")
    )
    assert one == pytest.approx(other, rel=1e-5)


def test_the_reference_is_the_base_without_a_second_model(tmp_path: Path) -> None:
    recipe = content(tmp_path)
    model, _ = open_policy(recipe["base"], AdapterRecipe(**LORA))
    base = logits(pellucid.load(recipe["base"])[0])
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    reference = Reference(model, recipe["base"])
    assert reference.frozen is None
    with reference() as model_before:
        assert model_before is model and torch.equal(logits(model_before), base)
    assert not torch.equal(logits(model), base)

    whole, _ = open_policy(recipe["base"])
    with torch.no_grad():
        whole.embedding.weight.add_(0.1)
    with Reference(whole, recipe["base"])() as frozen:
        assert torch.equal(logits(frozen), base)
        assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_a_run_goes_on_from_the_adapter_of_another(ended: Path) -> None:
    recipe = content(ended, "second", {"rank": 2}) | {"base": str(ended / "run")}
    carry_out({**recipe, "train": {**recipe["train"], "steps": 3}})
    model, _ = pellucid.load(ended / "second")
    earlier, _ = pellucid.load(ended / "run")
    merge_adapter(earlier)
    with adapter_off(model):
        assert torch.equal(logits(model), logits(earlier))


def test_show_and_convert_take_such_a_run(ended: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["show", str(ended / "run"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["adapter"]["peft_type"] == "LORA" and told["parameters"]["adapter"] > 1000
    assert told["about"]["steps"] == 12
    assert command(["show", str(ended / "run")]) == 0
    assert "rank 4" in capsys.readouterr().out
    assert command(["convert", str(ended / "run"), str(tmp_path / "merged")]) == 0
    said = capsys.readouterr().out
    assert "merged into its base in float32" in said and "no logit moved by more than" in said
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    ours = logits(pellucid.load(ended / "run")[0])
    with torch.no_grad():
        theirs = merged(torch.arange(7, 31)[None]).logits
    assert float((ours - theirs).abs().max()) < 1e-5 * float(ours.abs().max())
    assert command(["quantize", str(ended / "run"), str(tmp_path / "few")]) == 2
    assert "write the merged model first" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("adapter.targets=q_prj", "there is no layer 'q_prj' in the blocks of this model (did you mean 'q_proj'?)"),
        ("adapter.rank=0", "adapter.rank = 0"),
        ("adapter.quantize=int8", "adapter.quantize = 'int8'"),
        ("adapter.rnk=8", "there is no field 'adapter.rnk' (did you mean 'rank'?)"),
        ("base={bare}", "has no chat template, and an adapter holds no embeddings"),
    ],
)
def test_what_is_asked_wrongly_is_one_sentence(
    change: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content(tmp_path)))
    save_base(tmp_path / "bare")
    assert command(["sft", str(tmp_path / "recipe.yaml"), change.format(bare=tmp_path / "bare")]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_an_adapter_is_not_merged_into_four_bits(tmp_path: Path) -> None:
    recipe = content(tmp_path, steps=3)
    carry_out(recipe)
    with pytest.raises(pellucid.InputError, match="write the merged model first"):
        open_policy(str(tmp_path / "run"), AdapterRecipe(**QLORA))


@pytest.mark.parametrize("name", ["sft-smollm2-lora", "sft-smollm2-qlora"])
def test_the_recipes_that_come_along_are_sound(name: str) -> None:
    recipe = read_recipe(Path(__file__).parents[2] / f"recipes/{name}.yaml", ["adapter.rank=8"], SFTRecipe)
    assert recipe.adapter is not None and recipe.adapter.rank == 8
    assert (recipe.adapter.quantize == "nf4") == name.endswith("qlora")
