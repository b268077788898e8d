"""PEFT folders both ways: the same adapter beside the same base says the same here and in peft, and learns the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import pellucid
from pellucid.checkpoints.adapters import AdapterSaved, load_adapter, open_adapter, save_adapter
from pellucid.checkpoints.describe import describe
from pellucid.checkpoints.save import About, save
from pellucid.errors import InputError
from pellucid.models.adapters import (
    AdapterConfig,
    adapted,
    adapter_names,
    adapter_parameters,
    add_adapter,
    merge_adapter,
    train_adapter,
    use_adapter,
)
from pellucid.models.config import ModelConfig
from pellucid.models.decoder import Decoder
from tests.checkpoints.tiny import CONFIGS, SIZES, logits, random_model, tiny_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS: dict[str, AdapterConfig] = {
    "lora": AdapterConfig(rank=4, alpha=8.0),
    "rslora": AdapterConfig(rank=4, alpha=8.0, rslora=True, targets=("query", "v_proj")),
    "dora": AdapterConfig(rank=4, alpha=8.0, dora=True),
}
CLOSE = 1e-5  # of the largest logit


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a random model of each family."""
    folder = tmp_path_factory.mktemp("bases")

    def base(family: str) -> Path:
        if not (folder / family).exists():
            save(random_model(CONFIGS[family]), tiny_tokenizer(), folder / family)
        return folder / family

    return base


def stir(model: Any, seed: int = 0) -> None:
    """Moves what is trained at random."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.requires_grad:
                step = torch.randn(parameter.shape, generator=generator)
                parameter.add_(step * (0.3 if "magnitude" in name else 0.03))


def theirs_says(model: Any, length: int = 24) -> torch.Tensor:
    with torch.no_grad():
        said: torch.Tensor = model(torch.arange(7, 7 + length)[None]).logits
    return said


def check_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert float((ours - theirs).abs().max()) < CLOSE * float(theirs.abs().max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama-biases", "qwen3", "gemma2", "gpt2"])
def test_peft_opens_ours_and_learns_the_same(family: str, kind: str, bases: Any, tmp_path: Path) -> None:
    config = KINDS[kind]
    if family == "gpt2" and kind == "rslora":
        config = AdapterConfig(rank=4, alpha=8.0, rslora=True, targets=("c_attn", "down"))
    ours, _ = pellucid.load(bases(family))
    add_adapter(ours, config)
    stir(ours)
    save_adapter(ours, tmp_path / "adapter", base=bases(family))
    base = AutoModelForCausalLM.from_pretrained(bases(family), dtype=torch.float32)
    theirs = PeftModel.from_pretrained(base, tmp_path / "adapter", is_trainable=True).eval()
    check_same(logits(ours), theirs_says(theirs))

    tokens = torch.arange(7, 31)[None]
    torch.nn.functional.cross_entropy(ours(tokens)[0, :-1], tokens[0, 1:]).backward()
    torch.nn.functional.cross_entropy(theirs(tokens).logits[0, :-1], tokens[0, 1:]).backward()
    layers = adapted(ours)
    compared = 0
    for name, parameter in theirs.named_parameters():
        if parameter.requires_grad:
            mine = own_gradient(layers, name, family)
            assert float((mine - parameter.grad).abs().max()) <= 1e-5 * float(parameter.grad.abs().max()) + 1e-8, name
            compared += 1
    assert compared == len(load_file(tmp_path / "adapter/adapter_model.safetensors")) > 8


def own_gradient(layers: Any, name: str, family: str) -> torch.Tensor:
    """The gradient of ours that stands for peft's parameter `name`."""
    from pellucid.models.adapters import sites

    [site] = [one for one in sites(CONFIGS[family]) if f".{one.name}." in name]
    adapters = [layers[part].adapter("default") for part in site.parts]
    if "lora_A" in name:
        return adapters[0].down.grad
    return torch.cat([one.up.grad if "lora_B" in name else one.magnitude.grad for one in adapters])


@pytest.mark.parametrize("kind", ["patterns", "dora", "layers"])
@pytest.mark.parametrize("family", ["llama-biases", "gpt2"])
def test_pefts_opens_here(family: str, kind: str, bases: Any, tmp_path: Path) -> None:
    """Ranks and alphas of their own, a chosen layer, all linear ones; loaded, and saved again for peft."""
    one, other = ("c_attn", "c_proj") if family == "gpt2" else ("q_proj", "down_proj")
    fields: dict[str, Any] = {
        "patterns": {"target_modules": [one, other], "rank_pattern": {one: 2}, "alpha_pattern": {rf"3\..*{other}": 3}},
        "dora": {"target_modules": "all-linear", "use_dora": True, "use_rslora": True},
        "layers": {
            "target_modules": [one, other],
            "layers_to_transform": [1, 3],
            "exclude_modules": [f"3.mlp.{other}"],
        },
    }[kind]
    base = AutoModelForCausalLM.from_pretrained(bases(family), dtype=torch.float32)
    config = LoraConfig(r=4, lora_alpha=4, init_lora_weights=False, task_type="CAUSAL_LM", **fields)
    theirs = get_peft_model(base, config).eval()
    stir(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    ours, _ = pellucid.load(bases(family))
    load_adapter(ours, tmp_path / "theirs", "guest")
    check_same(logits(ours), theirs_says(theirs))
    assert not any(parameter.requires_grad for parameter in adapter_parameters(ours, "guest"))

    train_adapter(ours, "guest")
    stir(ours, seed=1)
    save_adapter(ours, tmp_path / "again", "guest", base="x")
    fresh = AutoModelForCausalLM.from_pretrained(bases(family), dtype=torch.float32)
    again = PeftModel.from_pretrained(fresh, tmp_path / "again").eval()
    check_same(logits(ours), theirs_says(again))


@pytest.mark.parametrize("family", ["llama-biases", "gpt2"])
def test_merged_and_saved_it_is_pefts_merged(family: str, bases: Any, tmp_path: Path) -> None:
    """Promise M1, with an adapter merged."""
    model, tokenizer = pellucid.load(bases(family))
    add_adapter(model, KINDS["dora"])
    stir(model)
    save_adapter(model, tmp_path / "adapter", base=bases(family))
    beside = logits(model)
    merge_adapter(model)
    save(model, tokenizer, tmp_path / "merged")
    assert torch.equal(logits(pellucid.load(tmp_path / "merged")[0]), logits(model))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    check_same(beside, theirs_says(theirs))
    base = AutoModelForCausalLM.from_pretrained(bases(family), dtype=torch.float32)
    check_same(beside, theirs_says(PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload()))


def test_a_folder_is_loaded_by_its_name_alone(bases: Any, tmp_path: Path) -> None:
    model, tokenizer = pellucid.load(bases("llama"))
    add_adapter(model, KINDS["lora"])
    stir(model)
    about = About(base="a llama", steps=7, tokens_seen=70, last_loss=0.5)
    save_adapter(model, tmp_path / "one", base=bases("llama"), tokenizer=tokenizer, about=about)
    again, same = pellucid.load(tmp_path / "one")
    assert torch.equal(logits(again), logits(model)) and same.chat_template == tokenizer.chat_template
    assert adapter_names(again) == ("default",) and not again.training
    assert open_adapter(tmp_path / "one").made["steps"] == 7

    merge_adapter(model)  # an adapter that was trained beside an adapter
    add_adapter(model, KINDS["rslora"])
    stir(model, seed=2)
    save_adapter(model, tmp_path / "two", base=tmp_path / "one")
    assert torch.equal(logits(pellucid.load(tmp_path / "two")[0]), logits(model))
    with pytest.warns(UserWarning, match=r"was merged into its base in torch.bfloat16: logits as large as"):
        pellucid.load(tmp_path / "two", dtype="bfloat16")
    one, two = (describe(str(tmp_path / name)) for name in ("one", "two"))
    base = describe(bases("llama"))
    assert two.weight_bytes == base.weight_bytes + 4 * two.parameters["adapter"] == two.kept_bytes
    assert two.stored["adapter"] > one.stored["adapter"]


def test_one_that_was_trained_beside_nf4_gets_such_a_base(bases: Any, tmp_path: Path) -> None:
    """Promise M1: what is loaded says what was in memory, and the products are those of plain layers."""
    model, _ = pellucid.load(bases("llama"), quantize="nf4")
    add_adapter(model, KINDS["lora"])
    stir(model)
    save_adapter(model, tmp_path / "adapter", base=bases("llama"), quantize="nf4")
    again, _ = pellucid.load(tmp_path / "adapter")
    assert torch.equal(logits(again), logits(model)) and not again.quantised
    plain, _ = pellucid.load(bases("llama"))
    with pytest.warns(UserWarning, match="weights differ a little"):
        load_adapter(plain, tmp_path / "adapter")
    assert not torch.equal(logits(plain), logits(model))


def test_several_folders_on_one_base(bases: Any, tmp_path: Path) -> None:
    said = {}
    for number, (name, config) in enumerate(KINDS.items()):
        model, _ = pellucid.load(bases("llama"))
        add_adapter(model, config, name)
        stir(model, number)
        save_adapter(model, tmp_path / name, name, base=bases("llama"))
        said[name] = logits(model)
    model, _ = pellucid.load(bases("llama"))
    for name in KINDS:
        load_adapter(model, tmp_path / name, name)
    for name in KINDS:
        use_adapter(model, name)
        assert torch.equal(logits(model), said[name])


def adapter_of(bases: Any, folder: Path) -> Path:
    """A whole one, for a model of 4 layers."""
    model, _ = pellucid.load(bases("llama"))
    add_adapter(model, KINDS["lora"])
    stir(model)
    save_adapter(model, folder, base=bases("llama"))
    return folder


def others(**sizes: Any) -> Decoder:
    return random_model(ModelConfig(**{**SIZES, **sizes}))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"hidden_size": 32}, "down_proj.lora_B.weight' is (64, 4), and this model asks for (32, 4)"),
        ({"intermediate_size": 48}, "is (4, 96), and this model asks for (4, 48)"),
        ({"num_layers": 3}, "tensor 'base_model.model.model.layers.3."),
        ({"num_layers": 5}, "it has no lora_A.weight for the layer 'model.layers.4."),
    ],
)
def test_another_base_is_refused_by_what_does_not_fit(
    sizes: dict[str, Any], message: str, bases: Any, tmp_path: Path
) -> None:
    """Promise M4. Nothing has been changed then."""
    adapter = adapter_of(bases, tmp_path / "adapter")
    model = others(**sizes)
    with pytest.raises(InputError) as error:
        load_adapter(model, adapter)
    assert message in str(error.value) and f"was made for '{bases('llama')}'" in str(error.value)
    assert not adapted(model)


def test_a_base_of_the_same_shape_is_known_by_its_weights(bases: Any, tmp_path: Path) -> None:
    adapter = adapter_of(bases, tmp_path / "adapter")
    stranger = Decoder(CONFIGS["llama"], seed=5)
    with pytest.raises(InputError, match="weights of this model are quite others"):
        load_adapter(stranger, adapter)
    narrow, _ = pellucid.load(bases("llama"), dtype="bfloat16")
    load_adapter(narrow, adapter)  # without a warning: it is the same model
    further, _ = pellucid.load(bases("llama"))
    with torch.no_grad():
        for parameter in further.parameters():
            parameter.add_(torch.randn(parameter.shape), alpha=0.005)
    with pytest.warns(UserWarning, match="rounded or trained further"):
        load_adapter(further, adapter)


def without(folder: Path, *endings: str) -> None:
    file = folder / "adapter_model.safetensors"
    kept = {name: tensor for name, tensor in load_file(file).items() if not name.endswith(endings)}
    save_file(kept, file)


def with_one_more(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    save_file({**load_file(file), "base_model.model.lm_head.lora_A.weight": torch.zeros(4, 64)}, file)


def with_fields(folder: Path, **fields: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: without(a, "layers.1.mlp.up_proj.lora_B.weight"), "no lora_B.weight for the layer 'model.layers.1."),
        (lambda a: with_fields(a, use_dora=True), "it has no lora_magnitude_vector"),
        (with_one_more, "'base_model.model.lm_head.lora_A.weight' has no place"),
        (lambda a: without(a, ".weight"), "holds no tensors of an adapter"),
        (lambda a: with_fields(a, modules_to_save=["lm_head"]), "modules_to_save = ['lm_head'] is not supported"),
        (lambda a: with_fields(a, peft_type="IA3"), "peft_type = 'IA3' is not supported"),
        (lambda a: with_fields(a, bias="all"), "bias = 'all' is not supported"),
        (lambda a: with_fields(a, init_lora_weights="pissa"), "init_lora_weights = 'pissa', which changes the base"),
        (lambda a: (a / "adapter_model.safetensors").write_bytes(b"x" * 40), "truncated or broken"),
        (lambda a: (a / "adapter_model.safetensors").unlink(), "there is no such file"),
        (lambda a: with_fields(a, base_model_name_or_path=None), "does not say what its base is"),
        (lambda a: with_fields(a, base_model_name_or_path="gone/../x"), "which is not to be had"),
        (lambda a: with_fields(a, base_model_name_or_path=str(a)), "names itself as its base"),
        (
            lambda a: (
                with_fields(a, target_modules="("),
                without(a, "1.mlp.up_proj.lora_A.weight", "1.mlp.up_proj.lora_B.weight"),
            ),
            "'(' is no pattern of layers' names",
        ),
    ],
)
def test_what_is_wrong_with_a_folder_is_one_sentence(
    change: Callable[[Path], Any], message: str, bases: Any, tmp_path: Path
) -> None:
    adapter = adapter_of(bases, tmp_path / "adapter")
    change(adapter)
    with pytest.raises(InputError) as error:
        pellucid.load(adapter)
    assert message in str(error.value)


def test_adapters_that_name_each_other_are_one_sentence(bases: Any, tmp_path: Path) -> None:
    one, other = (adapter_of(bases, tmp_path / name) for name in ("one", "other"))
    with_fields(one, base_model_name_or_path=str(other))
    with_fields(other, base_model_name_or_path=str(one))
    for read in (pellucid.load, describe):
        with pytest.raises(InputError, match="names itself as its base in a circle"):
            read(str(one))


def test_a_name_that_is_not_there_is_not_saved(bases: Any, tmp_path: Path) -> None:
    model, _ = pellucid.load(bases("llama"))
    add_adapter(model, KINDS["lora"], "polite")
    with pytest.raises(InputError, match="did you mean 'polite'"):
        save_adapter(model, tmp_path / "x", "polit", base=bases("llama"))


def test_a_run_does_not_go_on_beside_another_base(bases: Any, tmp_path: Path) -> None:
    adapter = adapter_of(bases, tmp_path / "adapter")
    stranger = Decoder(CONFIGS["llama"], seed=5)
    add_adapter(stranger, KINDS["lora"])
    with pytest.raises(InputError, match="weights of this model are quite others"):
        AdapterSaved(stranger, None, "x").restore(adapter)


def test_a_folder_with_something_else_is_not_replaced(bases: Any, tmp_path: Path) -> None:
    adapter = adapter_of(bases, tmp_path / "adapter")
    adapter_of(bases, adapter)  # an adapter is
    (adapter / "poem.txt").write_text("O")
    with pytest.raises(InputError, match=r"poem\.txt"):
        adapter_of(bases, adapter)
    shutil.rmtree(adapter)
