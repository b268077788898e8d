"""Folders of few bits against compressed-tensors and transformers: the same integers, the same logits."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import pellucid
from pellucid.checkpoints import compressed
from pellucid.checkpoints.compressed import Layout, compress, decompress, layout_of
from pellucid.checkpoints.describe import describe
from pellucid.checkpoints.save import save
from pellucid.errors import InputError
from pellucid.inference.quantisation.quantise import quantise
from pellucid.inference.quantisation.rounding import Grid, round_matrix
from pellucid.layers.quantised import Blocks, Quantised
from pellucid.models.quantised import weight_bytes
from pellucid.operations.blocks import BYTES, from_blocks
from tests.checkpoints.tiny import CONFIGS, logits, random_model, tiny_tokenizer

FORMATS = list(BYTES)


def written(folder: Path, name: str, config: str = "llama") -> dict[str, Blocks]:
    """A folder of a small random model, and the blocks that are in it."""
    model = random_model(CONFIGS[config])
    blocks = quantise(model, Grid(name, short=True), embedding=False)
    save(model.bfloat16(), tiny_tokenizer(), folder, blocks=blocks)
    return blocks


@given(st.lists(st.lists(st.integers(0, 15), min_size=13, max_size=13), min_size=1, max_size=5))
def test_integers_are_packed_as_compressed_tensors_packs_them(rows: list[list[int]]) -> None:
    theirs = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    numbers = torch.tensor(rows)
    for bits in (4, 8):
        signed = (numbers - (1 << bits - 1)).to(torch.int8)
        packed = compressed._pack(numbers, bits)
        assert torch.equal(packed, theirs.pack_to_int32(signed, bits))
        assert torch.equal(compressed._unpack(packed, bits)[:, :13].long(), numbers)
        assert torch.equal(compressed._pack(numbers.T, bits).T, theirs.pack_to_int32(signed, bits, packed_dim=0))


@pytest.mark.parametrize("name", FORMATS)
def test_blocks_come_back_to_the_last_bit(name: str) -> None:
    weight = torch.randn(13, 96) * torch.logspace(-5, 2, 13).unsqueeze(1)
    weight[3] = 0
    blocks = Blocks(round_matrix(weight, Grid(name, short=True)), name)
    tensors = {f"layer{part}": tensor for part, tensor in compress(blocks).items()}
    back = decompress("layer", layout_of(name), tensors.__getitem__)
    assert isinstance(back, Blocks) and back.format == name
    assert torch.equal(from_blocks(back.data, name), from_blocks(blocks.data, name))
    scale = tensors["layer.weight_scale"]
    assert torch.equal(scale.bfloat16().float(), scale.float())


@pytest.mark.parametrize("config", ["llama", "qwen2", "gemma2"])
@pytest.mark.parametrize("name", FORMATS)
def test_transformers_opens_the_folder_with_our_logits(name: str, config: str, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    blocks = written(tmp_path / "model", name, config)
    # As it is, it takes packed zero points for unpacked ones: compressed-tensors 0.20 does not pack them on "meta".
    how = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if name == "Q4_1" else {}
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32, **how).eval()
    ours, _ = pellucid.load(tmp_path / "model", dtype="float32")
    tokens = torch.arange(7, 31)[None]
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens).logits, logits(ours), rtol=1e-4, atol=1e-4)
    for parameter, one in blocks.items():
        assert torch.equal(ours.get_parameter(parameter), from_blocks(one.data, one.format))


@pytest.mark.parametrize("name", FORMATS)
def test_the_folder_is_read_as_it_lies(name: str, tmp_path: Path) -> None:
    blocks = written(tmp_path / "model", name)
    model, _ = pellucid.load(tmp_path / "model", quantize="stored")
    found = {f"{path}.weight": one for path, one in model.named_modules() if isinstance(one, Quantised)}
    assert found.keys() == blocks.keys()
    assert all(torch.equal(found[path].blocks, one.data) for path, one in blocks.items())
    told = describe(str(tmp_path / "model"))
    assert told.stored[name] == sum(one.data.nbytes for one in blocks.values())
    assert told.dtype == torch.float32 == model.dtype == pellucid.load(tmp_path / "model")[0].dtype
    assert told.kept_bytes == sum(weight_bytes(model).values()) < told.weight_bytes


def test_scales_that_blocks_do_not_hold_are_widened_and_that_is_said(tmp_path: Path) -> None:
    written(tmp_path / "model", "Q4_0")
    file = tmp_path / "model/model.safetensors"
    tensors = load_file(file)
    name = "model.layers.0.mlp.up_proj.weight_scale"
    tensors[name] = tensors[name].float() * 1.0001  # more digits than float16 has
    save_file(tensors, file, {"format": "pt"})
    with pytest.warns(UserWarning, match=r"1 matrices of .*model have scales that .* widened to bfloat16, 0 MiB"):
        model, _ = pellucid.load(tmp_path / "model", quantize="stored", dtype="bfloat16")
    assert model.get_parameter("blocks.0.feed_forward.up.weight").dtype == torch.bfloat16
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pellucid.load(tmp_path / "model")  # all are


def test_wider_groups_of_others_are_read_as_several_blocks() -> None:
    integers, scale, zero = torch.randint(0, 16, (8, 128)), torch.rand(8, 1) + 0.5, torch.randint(0, 16, (8, 1))
    scale = scale.bfloat16().float()
    tensors = {
        "x.weight_packed": compressed._pack(integers, 4),
        "x.weight_scale": scale,
        "x.weight_zero_point": compressed._pack(zero.T, 4).T,
        "x.weight_shape": torch.tensor([8, 128]),
    }
    read = decompress("x", Layout(4, False, 128), tensors.__getitem__)
    weight = from_blocks(read.data, read.format) if isinstance(read, Blocks) else read
    torch.testing.assert_close(weight, scale * (integers - zero), rtol=0, atol=0)


def test_scales_that_float16_does_not_hold_are_widened() -> None:
    blocks = Blocks(round_matrix(torch.randn(4, 32), Grid("Q4_0", short=True)), "Q4_0")
    tensors = {f"x{part}": tensor for part, tensor in compress(blocks).items()}
    tensors["x.weight_scale"] = tensors["x.weight_scale"].float() * 2**20
    read = decompress("x", layout_of("Q4_0"), tensors.__getitem__)
    assert isinstance(read, torch.Tensor)
    torch.testing.assert_close(read, from_blocks(blocks.data, "Q4_0") * 2**20)


def test_a_family_that_turns_its_matrices_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no place for .* write a GGUF file"):
        written(tmp_path / "model", "Q4_1", "gpt2")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"quant_method": "gptq"}, "only compressed-tensors"),
        ({"format": "nvfp4-pack-quantized"}, "only compressed-tensors"),
        ({"config_groups": {}}, "one group"),
        ({"config_groups": {"a": {"weights": {"num_bits": 3, "type": "int", "strategy": "group"}}}}, "3 bits"),
    ],
)
def test_other_layouts_are_refused(change: dict[str, object], said: str, tmp_path: Path) -> None:
    written(tmp_path / "model", "Q4_1")
    path = tmp_path / "model" / "config.json"
    content = json.loads(path.read_text())
    content["quantization_config"] |= change
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=said):
        pellucid.load(tmp_path / "model")


def test_scales_in_a_shard_of_their_own_are_read(tmp_path: Path) -> None:
    model = random_model(CONFIGS["llama"])
    blocks = quantise(model, Grid("Q4_1", short=True), embedding=False)
    save(model.bfloat16(), tiny_tokenizer(), tmp_path / "model", blocks=blocks, shard_bytes=1)
    back, _ = pellucid.load(tmp_path / "model", dtype="float32")
    assert all(torch.equal(back.get_parameter(name), from_blocks(one.data, "Q4_1")) for name, one in blocks.items())


def test_packed_integers_of_another_type_or_shape_are_refused() -> None:
    blocks = Blocks(round_matrix(torch.randn(4, 32), Grid("Q4_0", short=True)), "Q4_0")
    tensors = {f"x{part}": tensor for part, tensor in compress(blocks).items()}
    wrong = tensors | {"x.weight_packed": tensors["x.weight_packed"].long()}
    with pytest.raises(InputError, match="int32 is wanted"):
        decompress("x", layout_of("Q4_0"), wrong.__getitem__)
    with pytest.raises(InputError, match="are no matrix"):
        layout_of("Q4_0").shape((4,))
