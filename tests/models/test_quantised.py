"""Models in blocks of integers: the same model as one whose matrices hold the rounded numbers."""

from __future__ import annotations

import pytest
import torch

from pellucid.errors import InputError
from pellucid.layers.quantised import Blocks, Quantised
from pellucid.models.decoder import Decoder
from pellucid.models.quantised import SCHEMES, is_matrix, parse_scheme, put_blocks, weight_bytes
from pellucid.models.vocabulary import add_tokens
from pellucid.operations.blocks import from_blocks, to_blocks
from pellucid.operations.packed_blocks import PackedBlocks
from tests.checkpoints.tiny import CONFIGS, logits, random_model
from tests.models.few_bits import quantise

SHAPES = ["llama", "llama-tied-wide-heads", "llama-biases", "gemma2", "gpt2"]


def rounded(model: Decoder, format: str) -> Decoder:  # noqa: A002
    """`model` with the numbers that the blocks stand for, in plain matrices."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if is_matrix(name, weight):
                weight.copy_(from_blocks(to_blocks(weight, format), format))
    return model


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", SHAPES)
def test_it_computes_with_the_rounded_numbers(name: str, scheme: str) -> None:
    model = random_model(CONFIGS[name])
    assert quantise(model, scheme) == []
    assert model.quantised and not model.training
    assert model.dtype == torch.float32 and model.device == torch.device("cpu")
    expected = rounded(random_model(CONFIGS[name]), parse_scheme(scheme))
    torch.testing.assert_close(logits(model), logits(expected), rtol=1e-4, atol=1e-4)
    assert torch.equal(model.head_weight, expected.head_weight)


def test_it_takes_the_bytes_of_its_blocks() -> None:
    model = random_model(CONFIGS["llama-tied-wide-heads"])
    plain = weight_bytes(model)
    matrices = sum(weight.nbytes for name, weight in model.named_parameters() if is_matrix(name, weight))
    quantise(model, "int4")
    held = weight_bytes(model)
    assert held == {"Q4_1": matrices * 20 // 128, "float32": plain["float32"] - matrices}
    tensors = [*model.parameters(), *model.buffers()]
    assert sum(tensor.nbytes for tensor in tensors) == sum(held.values())


def test_it_can_be_moved_to_another_type() -> None:
    model = random_model(CONFIGS["llama"])
    quantise(model, "int8")
    assert model.to(torch.bfloat16).dtype == torch.bfloat16
    assert logits(model).dtype == torch.bfloat16 and model.new_cache(1, 4).layers[0].keys.dtype == torch.bfloat16


def test_rows_that_are_no_whole_blocks_stay_as_they_are() -> None:
    config = CONFIGS["llama"].model_copy(update={"intermediate_size": 100})
    model = random_model(config)
    assert quantise(model, "int8") == [f"blocks.{layer}.feed_forward.down.weight" for layer in range(4)]
    assert set(weight_bytes(model)) == {"Q8_0", "float32"}


def test_what_cannot_be_done_is_said() -> None:
    model = random_model(CONFIGS["llama"])
    with pytest.raises(InputError, match=r"there is no quantisation 'int5': it must be one of int8, int4, .*\(did you"):
        quantise(model, "int5")
    quantise(model, "int8")
    with pytest.raises(InputError, match="neither trained nor saved so: load it without quantize"):
        model.weights()
    head_alone = random_model(CONFIGS["llama"])
    assert head_alone.head is not None
    blocks = to_blocks(head_alone.get_parameter("head.weight").detach(), "Q8_0")
    put_blocks(head_alone, "head.weight", Blocks(blocks, "Q8_0"), torch.float32)
    for one in (model, head_alone):
        with pytest.raises(InputError, match="cannot take new tokens: load it without quantize"):
            add_tokens(one, [272], 272)


def test_what_is_packed_beside_the_blocks_is_counted() -> None:
    """Q4_1 of 4 bits and two halves for each 32 weights; the kernel wants two numbers of bfloat16 for them."""
    model = random_model(CONFIGS["llama"])
    quantise(model, "int4")
    layer = model.get_submodule("blocks.0.feed_forward.up")
    assert isinstance(layer, Quantised) and len(weight_bytes(model)) == 2
    layer.packed = PackedBlocks(layer.blocks, layer.format)
    assert weight_bytes(model)["Q4_1 packed for PyTorch's kernel"] == layer.blocks.nbytes
