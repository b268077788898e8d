"""Loading into blocks of integers: a GGUF file's as they lie there, others rounded as they are read."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import pytest
import torch
from gguf import quants
from torch import Tensor, nn

import pellucid
from pellucid.checkpoints import gguf_write
from pellucid.checkpoints import load as load_module
from pellucid.checkpoints.gguf_read import GGUF
from pellucid.checkpoints.gguf_save import save_gguf
from pellucid.checkpoints.load import load, to_run
from pellucid.checkpoints.save import save
from pellucid.checkpoints.source import find_source
from pellucid.errors import InputError
from pellucid.layers.quantised import Quantised
from pellucid.models.config import ModelConfig
from pellucid.models.decoder import Decoder
from pellucid.models.quantised import weight_bytes
from tests.checkpoints.tiny import CONFIGS, logits, random_model, tiny_tokenizer
from tests.models.few_bits import formats_of, quantise


@pytest.fixture(autouse=True)
def warnings_are_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def write_file(path: Path, config: ModelConfig, kind_of: Callable[[str], str]) -> Path:
    """A random model's GGUF file whose matrices are quantised by the gguf package, to a format by name."""
    save_gguf(random_model(config), tiny_tokenizer(), path, kind="f32")
    file = GGUF(path)
    tensors = {name: file.tensor(name).clone() for name in file.tensors}
    plan = [(name, tuple(t.shape), kind_of(name) if t.dim() > 1 else "F32") for name, t in tensors.items()]

    def encode(_: str, tensor: Tensor, kind: str) -> gguf_write.Bytes:
        encoded = quants.quantize(tensor.numpy(), gguf.GGMLQuantizationType[kind])
        return encoded.view("uint8").reshape(-1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf_write, "encode", encode)
        gguf_write.write_gguf(path, file.metadata, plan, tensors.items())
    return path


def matrices(model: Decoder) -> dict[str, Tensor]:
    """Every matrix by the name of its layer, in float32."""
    wide = {}
    for name, module in model.named_modules():
        if isinstance(module, Quantised):
            wide[name] = module.widened(torch.float32)
        elif isinstance(module, nn.Linear | nn.Embedding):
            wide[name] = module.weight.detach().float()
    return wide


def equal_matrices(one: Decoder, other: Decoder) -> bool:
    ours, theirs = matrices(one), matrices(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("format", ["Q8_0", "Q4_0", "Q4_1"])
@pytest.mark.parametrize("name", ["llama", "llama-tied-wide-heads", "qwen2", "gemma2"])
def test_blocks_stay_as_they_lie_in_the_file(name: str, format: str, tmp_path: Path) -> None:  # noqa: A002
    path = write_file(tmp_path / "m.gguf", CONFIGS[name], lambda _: format)
    model, _ = load(path, quantize="stored")
    plain, _ = load(path)
    assert formats_of(model) == {format} and not plain.quantised and not model.training
    assert equal_matrices(model, plain)
    torch.testing.assert_close(logits(model), logits(plain), rtol=1e-4, atol=1e-4)
    stored = sum(info.size for info in GGUF(path).tensors.values())
    assert sum(weight_bytes(model).values()) == stored
    narrow, _ = load(path, quantize="stored", dtype="bfloat16")
    assert narrow.dtype == torch.bfloat16 and equal_matrices(narrow, plain)


def test_fused_rows_of_blocks_are_taken_apart(tmp_path: Path) -> None:
    """GPT-2's query, key and value are one tensor in the file, and its learned positions are float32."""
    path = write_file(tmp_path / "m.gguf", CONFIGS["gpt2"], lambda n: "F32" if n.startswith("position") else "Q8_0")
    model, _ = load(path, quantize="stored")
    assert equal_matrices(model, load(path)[0]) and isinstance(model.positions, nn.Embedding)
    assert isinstance(model.blocks[0].attention.key, Quantised)


def test_other_formats_of_the_file_are_widened_and_that_is_said(tmp_path: Path) -> None:
    kinds = {"token_embd.weight": "Q5_1", "blk.1.ffn_down.weight": "Q5_0", "blk.2.ffn_up.weight": "F16"}
    path = write_file(tmp_path / "m.gguf", CONFIGS["llama"], lambda name: kinds.get(name, "Q4_0"))
    with pytest.warns(UserWarning, match=r"2 matrices of m.gguf lie in Q5_0, Q5_1, which are .* widened to bfloat16"):
        model, _ = load(path, quantize="stored", dtype="bfloat16")
    assert set(weight_bytes(model)) == {"Q4_0", "bfloat16"}
    assert model.embedding.weight.dtype == torch.bfloat16


@pytest.mark.parametrize(("scheme", "format"), [("int8", "Q8_0"), ("int4", "Q4_1"), ("q4_0", "Q4_0")])
def test_a_folder_is_rounded_as_it_is_read(scheme: str, format: str, tmp_path: Path) -> None:  # noqa: A002
    model = random_model(CONFIGS["llama-tied-wide-heads"])
    save(model, tiny_tokenizer(), tmp_path / "m")
    loaded, _ = load(tmp_path / "m", quantize=scheme)
    quantise(model, scheme)
    assert formats_of(loaded) == {format} and equal_matrices(model, loaded)


def test_a_file_in_the_format_that_is_asked_for_stays_as_it_is(tmp_path: Path) -> None:
    path = write_file(tmp_path / "m.gguf", CONFIGS["llama"], lambda n: "Q8_0" if "token" in n else "Q4_1")
    stored, _ = load(path, quantize="stored")
    finer, _ = load(path, quantize="int4")
    assert formats_of(stored) == {"Q8_0", "Q4_1"} and formats_of(finer) == {"Q4_1"}
    same, ours = matrices(stored), matrices(finer)
    assert all(torch.equal(same[name], ours[name]) for name in ours if name != "embedding")
    assert formats_of(load(path, quantize="int8")[0]) == {"Q8_0"}


def test_rows_that_are_no_whole_blocks_stay_and_that_is_said(tmp_path: Path) -> None:
    config = CONFIGS["llama"].model_copy(update={"intermediate_size": 100})
    save(random_model(config), tiny_tokenizer(), tmp_path / "m")
    with pytest.warns(UserWarning, match=r"4 matrices stay in float32, .*\('blocks.0.feed_forward.down.weight' is one"):
        model, _ = load(tmp_path / "m", quantize="int8")
    assert set(weight_bytes(model)) == {"Q8_0", "float32"}


def test_what_is_asked_wrongly_is_said() -> None:
    with pytest.raises(InputError, match=r"there is no quantisation 'int44'.*did you mean 'int4'"):
        load("smollm2", quantize="int44")


def test_a_model_that_is_run_keeps_its_blocks_unless_something_else_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(load_module, "why_not", lambda dtype: None)
    assert to_run(None, "auto") == "stored"
    assert to_run(None, "float32") is None
    assert to_run("int8", "auto") == to_run("int8", "bfloat16") == "int8"
    monkeypatch.setattr(load_module, "why_not", lambda dtype: "there is no compiler")
    assert to_run(None, "auto") is None and to_run("int4", "auto") == "int4"


def test_a_real_model_takes_the_bytes_of_its_file(smollm2: tuple[Decoder, object]) -> None:
    model, _ = pellucid.load("smollm2", quantize="stored")
    stored = sum(info.size for info in GGUF(find_source("smollm2").path).tensors.values())
    held = sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])
    assert held <= 1.1 * stored and stored < 98_400_000
    assert equal_matrices(model, smollm2[0])
