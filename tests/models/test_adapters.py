"""Adapters on a model: they begin as nothing, can be chosen and switched off, and merge and come back bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pellucid.errors import InputError
from pellucid.layers.lora import LoRALinear
from pellucid.layers.nf4 import NF4Linear, to_nf4
from pellucid.models.adapters import (
    AdapterConfig,
    active_adapter,
    adapted,
    adapter_names,
    adapter_off,
    adapter_parameters,
    add_adapter,
    choose,
    merge_adapter,
    remove_adapter,
    unmerge_adapter,
    use_adapter,
)
from pellucid.models.decoder import Decoder
from pellucid.models.quantised import put_nf4
from tests.checkpoints.tiny import CONFIGS, logits, random_model, same_weights

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS: dict[str, dict[str, Any]] = {"lora": {}, "rslora": {"rslora": True}, "dora": {"dora": True}}


def stirred(model: Decoder, name: str, seed: int = 0) -> Decoder:
    """The model with the adapter's parameters moved at random."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter_parameters(model, name):
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.03)
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama-biases", "gpt2", "gemma2"])
def test_it_begins_as_the_base_and_alone_is_trained(family: str, kind: str) -> None:
    model = random_model(CONFIGS[family])
    base = logits(model)
    add_adapter(model, AdapterConfig(rank=4, **KINDS[kind]))
    begun = logits(model)
    if kind == "dora":  # m / ||W|| is 1 up to its rounding
        torch.testing.assert_close(begun, base, rtol=1e-5, atol=1e-5)
    else:
        assert torch.equal(begun, base)
    wanting = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert wanting and all(".adapters.default." in name for name in wanting)
    stirred(model, "default")
    assert float((logits(model) - base).abs().max()) > 0.1
    with adapter_off(model):
        assert torch.equal(logits(model), base)
    assert active_adapter(model) == "default"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama-biases", "gpt2"])
def test_merging_is_measured_and_taken_back_bit_for_bit(family: str, kind: str) -> None:
    model = random_model(CONFIGS[family])
    add_adapter(model, AdapterConfig(rank=4, **KINDS[kind]))
    beside = logits(stirred(model, "default"))
    tokens = torch.arange(7, 31)[None]
    merged = merge_adapter(model, "default", tokens)
    assert not adapted(model) and model.weights()
    apart = float((logits(model) - beside).abs().max())
    assert merged.largest == apart and merged.spread == float(beside.abs().max())
    assert 0 < apart < 1e-5 * merged.spread * model.config.num_layers and merged.agreement == 1.0
    unmerge_adapter(model, merged)
    assert torch.equal(logits(model), beside) and adapter_names(model) == ("default",)


def test_merging_in_bfloat16_says_how_much_is_lost() -> None:
    model = random_model(CONFIGS["llama"], torch.bfloat16)
    add_adapter(model, AdapterConfig(rank=4))
    stirred(model, "default")
    assert merge_adapter(model, "default").largest > 1e-3


def test_several_adapters_live_on_one_base() -> None:
    model = random_model(CONFIGS["llama"])
    base = logits(model)
    add_adapter(model, AdapterConfig(rank=4), "one")
    add_adapter(model, AdapterConfig(rank=2, targets=("q_proj", "down")), "two", seed=1)
    said = {}
    for name in ("one", "two"):
        use_adapter(stirred(model, name), name)
        said[name] = logits(model)
    assert not torch.equal(said["one"], said["two"])
    alone = random_model(CONFIGS["llama"])
    add_adapter(alone, AdapterConfig(rank=2, targets=("q_proj", "down")), "two", seed=1)
    assert torch.equal(logits(stirred(alone, "two")), said["two"])
    use_adapter(model, None)
    assert torch.equal(logits(model), base)
    use_adapter(model, "one")
    remove_adapter(model, "two")
    assert adapter_names(model) == ("one",) and torch.equal(logits(model), said["one"])
    remove_adapter(model, "one")
    assert not adapted(model) and same_weights(model, random_model(CONFIGS["llama"]))


def test_a_base_in_few_bits_can_have_one_and_merges_to_what_it_was_beside() -> None:
    model = random_model(CONFIGS["llama"])
    for name, weight in list(model.named_parameters()):
        if name.startswith("blocks.") and weight.dim() == 2:
            put_nf4(model, name, to_nf4(weight))
    assert model.quantised
    add_adapter(model, AdapterConfig(rank=4, dora=True))
    beside = logits(stirred(model, "default"))
    query = model.blocks[0].attention.query
    assert isinstance(query, LoRALinear) and isinstance(query.base, NF4Linear)
    merge_adapter(model, "default")
    torch.testing.assert_close(logits(model), beside, rtol=1e-4, atol=1e-4)


def test_gpt2s_query_key_and_value_share_what_they_read_through() -> None:
    model = random_model(CONFIGS["gpt2"])
    add_adapter(model, AdapterConfig(rank=4, targets=("c_attn",)))
    one, two, three = (model.blocks[0].attention.get_submodule(part).adapter("default") for part in PARTS)
    assert one.down is two.down is three.down
    assert len(list(adapter_parameters(model, "default"))) == 4 * model.config.num_layers


PARTS = ("query", "key", "value")


def test_dropout_is_of_the_adapter_in_training_alone() -> None:
    model = random_model(CONFIGS["llama"])
    add_adapter(model, AdapterConfig(rank=4, dropout=0.5))
    stirred(model, "default")
    still = logits(model)
    model.train()
    torch.manual_seed(0)
    assert not torch.equal(logits(model), still)
    with adapter_off(model):
        assert torch.equal(logits(model), logits(random_model(CONFIGS["llama"])))
    assert torch.equal(logits(model.eval()), still)


@pytest.mark.parametrize(
    ("targets", "count"),
    [
        (("all-linear",), 28),
        (("q_proj",), 4),
        (("query",), 4),
        (("self_attn.q_proj", "v_proj"), 8),
        (("model.layers.3.self_attn.q_proj",), 1),
        (("blocks.2.feed_forward.down", "model.layers.2.mlp.down_proj"), 1),
    ],
)
def test_targets_are_the_familys_names_or_ours(targets: tuple[str, ...], count: int) -> None:
    assert len(choose(CONFIGS["llama"], targets)) == count


@pytest.mark.parametrize(
    ("family", "targets", "message"),
    [
        ("llama", ("q_prj",), "there is no layer 'q_prj' in the blocks of this model (did you mean 'q_proj'?)"),
        ("llama", ("lm_head",), "there is no layer 'lm_head'"),
        ("gpt2", ("query",), "'query' is a part of one matrix in this model: name c_attn"),
    ],
)
def test_wrong_targets_are_named(family: str, targets: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError) as error:
        choose(CONFIGS[family], targets)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": 0}, "rank = 0"),
        ({"alpha": 0.0}, "alpha = 0.0"),
        ({"alpha": float("nan")}, "alpha = nan"),
        ({"dropout": 1.0}, "dropout = 1.0"),
        ({"targets": ()}, "targets is empty"),
    ],
)
def test_wrong_fields_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        AdapterConfig(**fields)


def test_wrong_names_are_one_sentence() -> None:
    model = random_model(CONFIGS["llama"])
    with pytest.raises(InputError, match="no adapter 'default': there are none"):
        merge_adapter(model)
    add_adapter(model, AdapterConfig(rank=2, targets=("q_proj",)), "polite")
    for wrong in ("", "v1.0", "keys", "training", "polite"):
        with pytest.raises(InputError, match="adapter"):
            add_adapter(model, AdapterConfig(rank=2), wrong)
    with pytest.raises(InputError, match="did you mean 'polite'"):
        use_adapter(model, "polit")
    with pytest.raises(InputError, match="merge it first"):
        model.weights()
