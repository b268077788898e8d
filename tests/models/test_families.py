"""Every family against transformers: random small configs with every feature on; logits, cached decode, way back."""

from __future__ import annotations

import json

import pytest
import torch
import transformers as tf
from torch import Tensor

from pellucid.errors import InputError
from pellucid.layers.batch import Batch
from pellucid.models.config import ModelConfig
from pellucid.models.decoder import Decoder
from pellucid.models.families import FAMILIES, family_for, family_of

# float32 on both sides, logits of order 1 to 10: sums in another order differ by about 1e-6 of that.
TOLERANCE = 1e-4

SMALL = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "head_dim": 16,  # not hidden_size / heads
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 500.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
    "rope_theta": 1000.0,
}
SLIDING = ["sliding_attention", "full_attention"] * 2
CASES = {
    "llama": (tf.LlamaConfig, {}),
    "llama-mha-relatives": (tf.LlamaConfig, {"num_key_value_heads": 6, "rms_norm_eps": 1e-3, "hidden_act": "gelu"}),
    "llama-mqa-biases-tied": (
        tf.LlamaConfig,
        {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "llama-linear": (
        tf.LlamaConfig,
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
    ),
    "llama-dynamic": (  # 24 tokens on a context of 16: the frequencies stretch
        tf.LlamaConfig,
        {
            "max_position_embeddings": 16,
            "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
        },
    ),
    "llama-yarn": (tf.LlamaConfig, {"rope_parameters": YARN}),
    "llama-yarn-mscale": (
        tf.LlamaConfig,
        {"rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.3, "beta_fast": 20.0, "truncate": False}},
    ),
    "llama-llama3": (tf.LlamaConfig, {"rope_parameters": LLAMA3}),
    "mistral": (tf.MistralConfig, {"sliding_window": None}),
    "mistral-window": (tf.MistralConfig, {"sliding_window": 5}),
    "qwen2": (tf.Qwen2Config, {"tie_word_embeddings": True}),
    "qwen2-window": (
        tf.Qwen2Config,
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2},
    ),
    "qwen3": (tf.Qwen3Config, {}),
    "qwen3-biases-window": (
        tf.Qwen3Config,
        {
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 5,
            "layer_types": SLIDING,
            "tie_word_embeddings": True,
        },
    ),
    "gemma2": (tf.Gemma2Config, {"sliding_window": 5, "query_pre_attn_scalar": 24, "final_logit_softcapping": 5.0}),
    "gemma2-biases": (tf.Gemma2Config, {"attention_bias": True, "attn_logit_softcapping": 3.0, "sliding_window": 7}),
    "gemma3": (tf.Gemma3TextConfig, {"sliding_window": 5, "query_pre_attn_scalar": 20, "layer_types": SLIDING}),
    "gemma3-linear-softcaps": (
        tf.Gemma3TextConfig,
        {
            "sliding_window": 6,
            "layer_types": SLIDING,
            "final_logit_softcapping": 9.0,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e5},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
        },
    ),
    "gpt2": (tf.GPT2Config, {}),
    "gpt2-relu-untied": (
        tf.GPT2Config,
        {"activation_function": "relu", "n_inner": 56, "tie_word_embeddings": False},
    ),
}


def reference(case: str) -> tf.PreTrainedModel:
    """transformers' model of the case, every parameter random: norms and biases too."""
    config_class, extra = CASES[case]
    if config_class is tf.GPT2Config:
        small = {"vocab_size": 97, "n_embd": 48, "n_layer": 4, "n_head": 6, "n_positions": 64}
    else:
        small = SMALL
    config = config_class(**{**small, **extra}, attn_implementation="eager")
    model = tf.AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(sum(map(ord, case)))
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.empty_like(parameter).normal_(0, 0.2, generator=generator)
            parameter.copy_(parameter + noise if parameter.dim() == 1 else noise)
    return model


def ours(theirs: tf.PreTrainedModel) -> Decoder:
    """Our decoder with the reference's weights, through the config.json and the names of a checkpoint."""
    hf_config = json.loads(theirs.config.to_json_string())
    family = family_for(hf_config["model_type"])
    config = family.read_config(hf_config)
    state: dict[str, Tensor] = {}
    for name, tensor in theirs.state_dict().items():
        if not family.ignores(config, name):
            state |= family.to_ours(config, name, tensor)
    model = Decoder(config)
    model.load_state_dict(state)  # strict: nothing missing, nothing spare
    return model


@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_logits_and_cached_decode_equal_transformers(case: str) -> None:
    theirs = reference(case)
    model = ours(theirs)
    tokens = torch.randint(0, 97, (2, 24), generator=torch.Generator().manual_seed(1))
    expected = theirs(tokens).logits
    assert expected.abs().max() > 1  # a test upon logits near 0 would show nothing
    torch.testing.assert_close(model(tokens), expected, atol=TOLERANCE, rtol=0)

    # a prompt of 11 tokens, five one by one, then the other eight at once; transformers does the same with its cache
    cache = model.new_cache(2, 24)
    positions = torch.arange(24).expand(2, 24)
    their_cache = tf.DynamicCache(config=theirs.config)
    for start, end in [(0, 11), *((i, i + 1) for i in range(11, 16)), (16, 24)]:
        piece = tokens[:, start:end]
        got = model(piece, Batch(positions[:, start:end], cache=cache))
        want = theirs(piece, past_key_values=their_cache).logits
        torch.testing.assert_close(got, want, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_the_way_back_is_bit_equal(case: str) -> None:
    theirs = reference(case)
    model = ours(theirs)
    family = family_for(theirs.config.model_type)
    names = family.to_theirs(model.config, dict(model.named_parameters()))
    state = {name: tensor for name, tensor in theirs.state_dict().items() if not family.ignores(model.config, name)}
    assert names.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(names[name], tensor), name
    assert {name: tuple(t.shape) for name, t in state.items()} == family.shapes(model.config)


@pytest.mark.parametrize("case", CASES)
def test_config_round_trip(case: str) -> None:
    """What we write, transformers reads as the same model, in its new spelling and in its old one."""
    theirs = reference(case)
    model = ours(theirs)
    family = family_for(theirs.config.model_type)
    assert family.expresses(model.config)
    assert family_of(model.config, prefer=family.model_type) is family
    written = family.write_config(model.config)
    again = tf.AutoModelForCausalLM.from_config(tf.AutoConfig.for_model(**written), attn_implementation="eager").eval()
    again.load_state_dict(theirs.state_dict())
    tokens = torch.randint(0, 97, (1, 24), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        torch.testing.assert_close(again(tokens).logits, theirs(tokens).logits, atol=1e-6, rtol=0)


def test_old_spelling_of_rope() -> None:
    """config.json as transformers 4 wrote it."""
    old = {**SMALL, "rope_theta": 1234.0, "rope_scaling": {"type": "linear", "factor": 2.0}}
    rope = family_for("llama").read_config(old).rope
    assert (rope.theta, rope.scaling, rope.factor) == (1234.0, "linear", 2.0)
    old = {**SMALL, "rope_theta": 1e6, "rope_local_base_freq": 5e3, "rope_scaling": None}
    gemma = family_for("gemma3_text").read_config(old)
    assert gemma.rope.theta == 1e6 and gemma.local_rope is not None and gemma.local_rope.theta == 5e3


def test_families_differ_in_config_only() -> None:
    """A model that no family can express has none; one that several can goes to the one it came from."""
    config = ours(reference("llama")).config
    assert family_of(config).model_type == "llama"  # type: ignore[union-attr]
    assert family_of(config, prefer="mistral").model_type == "mistral"  # type: ignore[union-attr]
    assert family_of(config.model_copy(update={"position": "alibi"})) is None


@pytest.mark.parametrize(
    ("model_type", "change", "message"),
    [
        ("llama", {"hidden_act": "relu6"}, "hidden_act = 'relu6' is not supported"),
        ("llama", {"rope_parameters": {"rope_type": "longrope"}}, "rope type 'longrope' is not supported"),
        ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor = 0.5 is not supported"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"type": "linear", "factor": 2.0}},
            "rope_parameters and rope_scaling disagree",
        ),
        ("llama", {"num_key_value_heads": 5}, "num_kv_heads = 5 must divide num_heads = 6"),
        ("llama", {"hidden_size": -1}, "hidden_size = -1"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True is not supported"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ],
)
def test_what_is_not_supported_is_named(model_type: str, change: dict, message: str) -> None:
    config_class = type(tf.AutoConfig.for_model(model_type))
    config = {**json.loads(config_class().to_json_string()), **SMALL, **change}
    with pytest.raises(InputError, match=message):
        family_for(model_type).read_config(config)


def test_a_missing_key_is_named() -> None:
    with pytest.raises(InputError, match=r"config\.json of a llama model lacks 'vocab_size'"):
        family_for("llama").read_config({})


def test_unknown_model_type_names_what_there_is() -> None:
    with pytest.raises(InputError, match=r"'lama' is not known \(did you mean 'llama'\?\): there are llama, mistral"):
        family_for("lama")


def test_spare_and_misshapen_tensors_are_named() -> None:
    model = ours(reference("llama"))
    family = FAMILIES["llama"]
    with pytest.raises(InputError, match=r"'model.layers.9.mlp.up_proj.weight' has no place"):
        family.to_ours(model.config, "model.layers.9.mlp.up_proj.weight", torch.zeros(80, 48))
    with pytest.raises(InputError, match=r"'model.layers.0.mlp.up_proj.bias' has no place"):
        family.to_ours(model.config, "model.layers.0.mlp.up_proj.bias", torch.zeros(80))
    with pytest.raises(InputError, match=r"is \(80, 47\) and the config asks for \(80, 48\)"):
        family.to_ours(model.config, "model.layers.0.mlp.up_proj.weight", torch.zeros(80, 47))
    gpt2 = ours(reference("gpt2"))
    with pytest.raises(InputError, match=r"is \(48, 143\) and the config asks for \(48, 144\)"):
        FAMILIES["gpt2"].to_ours(gpt2.config, "h.0.attn.c_attn.weight", torch.zeros(48, 143))


def test_gpt2_names_without_their_prefix() -> None:
    config = ModelConfig(
        vocab_size=9,
        hidden_size=8,
        num_layers=1,
        num_heads=2,
        intermediate_size=32,
        max_positions=4,
        norm="layernorm",
        position="learned",
        activation="gelu_tanh",
        tie_embeddings=True,
        query_bias=True,
        output_bias=True,
        feed_forward_bias=True,
    )
    fused = torch.arange(24.0)
    parts = FAMILIES["gpt2"].to_ours(config, "h.0.attn.c_attn.bias", fused)
    assert list(parts) == [f"blocks.0.attention.{part}.bias" for part in ("query", "key", "value")]
    assert torch.equal(torch.cat(list(parts.values())), fused)
