"""Hugging Face folders: out and in, ours and transformers', whole and broken."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import pellucid
from pellucid.checkpoints.folder import open_folder, read_folder
from pellucid.checkpoints.save import About, save
from pellucid.errors import InputError
from pellucid.models.config import ModelConfig
from tests.checkpoints.tiny import CONFIGS, SIZES, logits, random_model, same_weights, tiny_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(random_model(CONFIGS["llama"]), tiny_tokenizer(), tmp_path / "model")
    return tmp_path / "model"


def edit(path: Path, **changes: Any) -> None:
    """Changes keys of a JSON file; None removes one."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("shard_bytes", [10**9, 50_000])
def test_what_was_saved_is_what_was_in_memory(name: str, shard_bytes: int, tmp_path: Path) -> None:
    """Promise M1: here and in transformers, tied or not, in one file or in shards."""
    model = random_model(CONFIGS[name])
    save(model, tiny_tokenizer(), tmp_path / "model", shard_bytes=shard_bytes)
    files = sorted((tmp_path / "model").glob("*.safetensors"))
    assert (len(files) > 3) == (shard_bytes == 50_000)
    back, tokenizer = read_folder(tmp_path / "model")
    assert back.config == model.config and same_weights(model, back)
    assert tokenizer.encode("on the 12 pellucid things") == tiny_tokenizer().encode("on the 12 pellucid things")
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", dtype="auto", attn_implementation="eager", output_loading_info=True
    )
    assert not any(report.values())
    tokens = torch.arange(7, 31)[None]
    with torch.no_grad():
        assert torch.allclose(theirs.eval()(tokens).logits, logits(model), atol=1e-4)


def test_what_transformers_saves_is_read(tmp_path: Path) -> None:
    config = transformers.Qwen2Config(
        vocab_size=272, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=96, tie_word_embeddings=True,
    )  # fmt: skip
    theirs = transformers.Qwen2ForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path, max_shard_size="50KB")
    tiny_tokenizer().save(tmp_path)
    model, _ = read_folder(tmp_path)
    tokens = torch.arange(7, 31)[None]
    with torch.no_grad():
        assert torch.allclose(theirs(tokens).logits, model(tokens), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_dtype_is_kept_or_cast(dtype: torch.dtype, tmp_path: Path) -> None:
    model = random_model(CONFIGS["gpt2"], dtype)
    save(model, tiny_tokenizer(), tmp_path / "m")
    kept, _ = pellucid.load(tmp_path / "m")
    assert same_weights(model, kept) and not kept.training
    cast, _ = pellucid.load(tmp_path / "m", dtype="bfloat16")
    assert same_weights(model.bfloat16(), cast)
    assert json.loads((tmp_path / "m/config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")


def test_the_checkpoint_says_what_it_is(tmp_path: Path) -> None:
    """Promise M2."""
    model = random_model(CONFIGS["llama"])
    model.generation_config = {"temperature": 0.6}
    about = About(base="smollm2", steps=100, tokens_seen=12800, last_loss=2.5)
    save(model, tiny_tokenizer(), tmp_path / "m", about=about)
    config = json.loads((tmp_path / "m/config.json").read_text())
    told = {"version": pellucid.__version__, "base": "smollm2", "steps": 100, "tokens_seen": 12800, "last_loss": 2.5}
    assert config["pellucid"] == told and config["architectures"] == ["LlamaForCausalLM"]
    ends = {"bos_token_id": 263, "eos_token_id": [264, 262], "pad_token_id": 262}
    assert read_folder(tmp_path / "m")[0].generation_config == {"temperature": 0.6} | ends


def test_a_model_of_no_family_is_kept_and_said(tmp_path: Path) -> None:
    model = random_model(ModelConfig(**SIZES, position="alibi", activation="relu", norm_position="post"))
    with pytest.warns(UserWarning, match="no published family can express this config"):
        save(model, tiny_tokenizer(), tmp_path / "m")
    back, _ = read_folder(tmp_path / "m")
    assert back.config == model.config and same_weights(model, back)


def test_loading_holds_no_second_copy(tmp_path: Path) -> None:
    """The peak of a process that loads 200 MB of weights and reads every one is little more than these 200 MB."""
    config = ModelConfig(**SIZES | {"vocab_size": 50_000, "hidden_size": 512, "num_heads": 8})
    model = random_model(config)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    save(model, tiny_tokenizer(), tmp_path / "m")
    script = f"""
import sys
import torch, pellucid
from pellucid.models.families import parameter_shapes
from pellucid.checkpoints.folder import open_folder
parameter_shapes(open_folder({str(tmp_path / "m")!r}).config)
def peak():  # of this program alone: getrusage would count what its parent was before it
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(status["VmHWM"].split()[0]) * 1024
before = peak()
model, _ = pellucid.load({str(tmp_path / "m")!r})
print(sum(float(parameter.detach().sum()) for parameter in model.parameters()), file=sys.stderr)
print(peak() - before)
"""
    grown = int(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)
    assert weights > 200e6
    assert 0.9 * weights < grown < 1.1 * weights


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "lama"}, r"'lama' is not known \(did you mean 'llama'\?\)"),
        ({"model_type": None}, r"config.json: 'model_type' is missing"),
        ({"hidden_size": None}, r"lacks 'hidden_size'"),
        ({"num_hidden_layers": 5}, r"the tensor 'model.layers.4.input_layernorm.weight' is missing \(and 8 more\)"),
        ({"num_hidden_layers": 3}, r"the tensor 'model.layers.3.*' has no place in a model of this config"),
        ({"intermediate_size": 97}, r"'model.layers.0.mlp.*' has the shape .*; the config asks for .*97"),
        ({"quantization_config": {"bits": 4}}, r"the weights are quantised"),
    ],
)
def test_a_wrong_config_is_named(folder: Path, changes: dict[str, Any], message: str) -> None:
    edit(folder / "config.json", **changes)
    with pytest.raises(InputError, match=message):
        read_folder(folder)


def test_a_broken_file_is_named(folder: Path) -> None:
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    for length in (0, 4, 100, len(content) // 2, len(content) - 1):
        weights.write_bytes(content[:length])
        with pytest.raises(InputError, match=r"model.safetensors: this safetensors file is truncated or broken"):
            read_folder(folder)
    weights.unlink()
    (folder / "pytorch_model.bin").touch()
    with pytest.raises(InputError, match=r"neither model.safetensors nor .*; pytorch_model.bin is a pickle"):
        read_folder(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config.json: this is not JSON"):
        read_folder(folder)


def test_a_broken_index_is_named(tmp_path: Path) -> None:
    save(random_model(CONFIGS["llama"]), tiny_tokenizer(), tmp_path, shard_bytes=50_000)
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.rename(tmp_path / "aside")
    with pytest.raises(InputError, match=rf"the shard '{shard.name}' of the index is missing"):
        read_folder(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    edit(index, weight_map={"model.norm.weight": "../other.safetensors"})
    with pytest.raises(InputError, match=r"the shard '../other.safetensors' is outside the folder"):
        read_folder(tmp_path)
    edit(index, weight_map=[1])
    with pytest.raises(InputError, match=r"'weight_map' must name the file"):
        read_folder(tmp_path)


def test_a_tensor_too_many_or_of_another_kind_is_named(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"model.layers.0.mlp.extra.weight": torch.zeros(2)}, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"'model.layers.0.mlp.extra.weight' has no place"):
        open_folder(folder)
    save_file(weights | {"model.norm.weight": torch.zeros(64, dtype=torch.int8)}, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"'model.norm.weight' is stored as I8, which is not read"):
        open_folder(folder)


def test_only_a_model_folder_is_replaced(folder: Path) -> None:
    model, tokenizer = random_model(CONFIGS["gpt2"]), tiny_tokenizer()
    save(model, tokenizer, folder)
    assert same_weights(read_folder(folder)[0], model)
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"holds 'thesis.tex', so it is not just a model folder"):
        save(model, tokenizer, folder)
    assert (folder / "thesis.tex").read_text() == "years of work"
    with pytest.raises(InputError, match="is a file"):
        save(model, tokenizer, folder / "thesis.tex")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "lama"}, r"m: the model type 'lama' is not known \(did you mean 'llama'\?\)"),
        ({"num_attention_heads": "nine"}, r"m: model config: num_heads = 'nine'"),
        ({"hidden_act": "relu6"}, r"m: config\.json: hidden_act = 'relu6' is not supported"),
    ],
)
def test_a_wrong_config_names_its_folder(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    """Promise E5."""
    save(random_model(CONFIGS["llama"]), tiny_tokenizer(), tmp_path / "m")
    file = tmp_path / "m/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InputError, match=said):
        pellucid.load(tmp_path / "m")


def test_an_old_buffer_of_truth_values_is_passed_over(tmp_path: Path) -> None:
    model = random_model(CONFIGS["gpt2"])
    save(model, tiny_tokenizer(), tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    save_file(load_file(file) | {"h.0.attn.bias": torch.ones(1, 1, 8, 8).bool()}, file)
    assert same_weights(read_folder(tmp_path / "model")[0], model)
