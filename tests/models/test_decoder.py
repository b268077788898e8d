"""The decoder: packing, padding and caching change nothing; what is inside can be seen; seeds and initial weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pellucid.errors import InputError
from pellucid.layers.batch import PADDING, Batch
from pellucid.models.config import ModelConfig
from pellucid.models.decoder import Decoder

BASE = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_layers": 3,
    "num_heads": 4,
    "num_kv_heads": 2,
    "intermediate_size": 48,
    "max_positions": 40,
    "initializer_range": 0.3,  # large enough that every part matters
}
KINDS = {
    "llama-like": {},
    "window": {"window": 4},
    "window in some layers": {"window": 3, "window_layers": (True, False, True), "local_rope": {"theta": 50.0}},
    "alibi": {"position": "alibi", "num_kv_heads": 4},
    "alibi, grouped, window": {"position": "alibi", "window": 5},
    "learned": {"position": "learned", "norm": "layernorm", "activation": "gelu", "query_bias": True},
    "sinusoidal, post-norm": {"position": "sinusoidal", "norm_position": "post", "activation": "relu"},
    "soft caps, sandwich": {
        "attention_softcap": 3.0,
        "logit_softcap": 4.0,
        "norm_position": "sandwich",
        "norm_offset": True,
    },
    "no positions, QK-norm, tied": {"position": "none", "qk_norm": True, "tie_embeddings": True},
}


def make(kind: str) -> Decoder:
    return Decoder(ModelConfig(**{**BASE, **KINDS[kind]})).eval()


def random_tokens(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 61, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4), seed=st.integers(0, 99))
@torch.inference_mode()
def test_packed_documents_are_each_by_itself(kind: str, lengths: list[int], seed: int) -> None:
    model = make(kind)
    documents = [random_tokens(1, length, seed + i) for i, length in enumerate(lengths)]
    batch = Batch(
        positions=torch.cat([torch.arange(n) for n in lengths])[None],
        documents=torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)])[None],
    )
    packed = model(torch.cat(documents, 1), batch)
    alone = torch.cat([model(document) for document in documents], 1)
    torch.testing.assert_close(packed, alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_packed_documents_are_the_sum_of_each(kind: str) -> None:
    model, lengths = make(kind), [5, 9, 2]
    documents = [random_tokens(1, length, i) for i, length in enumerate(lengths)]
    weights = torch.randn(1, sum(lengths), 61)
    sum((model(d) * w).sum() for d, w in zip(documents, weights.split(lengths, 1), strict=True)).backward()
    alone = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    numbers = torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)])[None]
    (model(torch.cat(documents, 1), Batch(positions, numbers)) * weights).sum().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, alone[name], atol=1e-3, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None)
@given(pieces=st.lists(st.integers(1, 8), min_size=1, max_size=5), pads=st.tuples(*[st.integers(0, 4)] * 2))
@torch.inference_mode()
def test_cached_and_padded_equals_whole(kind: str, pieces: list[int], pads: tuple[int, int]) -> None:
    """Two rows, each padded on the left by its own amount, in pieces of any size."""
    model, length = make(kind), sum(pieces)
    tokens = random_tokens(2, length)
    expected = model(tokens)
    width = max(pads)
    cache = model.new_cache(2, width + length)
    rows = [torch.cat((torch.zeros(width, dtype=torch.long), row)) for row in tokens]
    # row 0 has its own text shifted: pads[i] of the places before it stay padding, the rest are a document of their own
    numbers = torch.zeros(2, width + length, dtype=torch.long)
    for row, pad in enumerate(pads):
        numbers[row, :pad] = PADDING
        numbers[row, pad:width] = 7
    positions = torch.cat((torch.zeros(2, width, dtype=torch.long), torch.arange(length).expand(2, length)), 1)
    padded, got, start = torch.stack(rows), [], 0
    for size in [width + pieces[0], *pieces[1:]]:
        part = slice(start, start + size)
        got.append(model(padded[:, part], Batch(positions[:, part], numbers[:, part], cache)))
        start += size
    torch.testing.assert_close(torch.cat(got, 1)[:, width:], expected, atol=1e-4, rtol=0)
    assert cache.length == width + length


@torch.inference_mode()
def test_rows_can_leave_the_cache() -> None:
    model, tokens = make("window"), random_tokens(3, 10)
    cache = model.new_cache(3, 10)
    positions = torch.arange(10).expand(3, 10)
    model(tokens[:, :9], Batch(positions[:, :9], torch.zeros(3, 9, dtype=torch.long), cache))
    cache.select(torch.tensor([2, 0]))
    got = model(tokens[[2, 0], 9:], Batch(positions[:2, 9:], torch.zeros(2, 1, dtype=torch.long), cache))
    torch.testing.assert_close(got[:, 0], model(tokens)[[2, 0], -1], atol=1e-5, rtol=0)


@torch.inference_mode()
def test_post_norm_is_the_2017_transformer() -> None:
    """torch's own encoder layer (post-norm, ReLU), under the same weights and a causal mask."""
    config = ModelConfig(
        **{**BASE, "num_kv_heads": 4, "norm": "layernorm", "norm_position": "post", "activation": "relu"},
        position="none",
        query_bias=True,
        output_bias=True,
        feed_forward_bias=True,
    )
    model = Decoder(config).eval()
    x = model.embedding(random_tokens(2, 9))
    for block in model.blocks:
        peer = nn.TransformerEncoderLayer(32, 4, 48, dropout=0.0, activation="relu", batch_first=True).eval()
        a = block.attention
        peer.self_attn.in_proj_weight.copy_(torch.cat((a.query.weight, a.key.weight, a.value.weight)))
        peer.self_attn.in_proj_bias.copy_(torch.cat((a.query.bias, a.key.bias, a.value.bias)))
        for theirs, mine in (
            (peer.self_attn.out_proj, a.output),
            (peer.linear1, block.feed_forward.up),
            (peer.linear2, block.feed_forward.down),
            (peer.norm1, block.attention_norm),
            (peer.norm2, block.feed_forward_norm),
        ):
            theirs.weight.copy_(mine.weight)
            theirs.bias.copy_(mine.bias)
        x = peer(x, src_mask=nn.Transformer.generate_square_subsequent_mask(9), is_causal=True)
    torch.testing.assert_close(model.hidden(random_tokens(2, 9)), x, atol=1e-4, rtol=0)


@torch.inference_mode()
def test_hooks_see_every_part_and_change_nothing() -> None:
    model, tokens = make("llama-like"), random_tokens(1, 7)
    plain = model(tokens)
    seen: dict[str, Tensor] = {}
    names = [name for name, _ in model.named_modules() if name and not name.endswith("pattern")]
    assert {"blocks.2.attention.query", "blocks.0.feed_forward.gate", "blocks.1", "final_norm", "head"} <= set(names)
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda _m, _i, out, name=name: seen.__setitem__(name, out))
        for name in names
    ]
    assert torch.equal(model(tokens), plain)
    assert set(names) - seen.keys() == {"blocks"}  # the list itself computes nothing
    for hook in hooks:
        hook.remove()
    # the residual stream: each block adds what its two parts write
    written = seen["embedding"] + sum(seen[f"blocks.{i}.{p}"] for i in range(3) for p in ("attention", "feed_forward"))
    torch.testing.assert_close(written, seen["blocks.2"], atol=1e-4, rtol=0)


@torch.inference_mode()
def test_the_attention_pattern_can_be_seen_and_replaced() -> None:
    model, tokens = make("llama-like"), random_tokens(1, 7)
    plain, seen = model(tokens), []
    where = model.get_submodule("blocks.1.attention.pattern")
    hook = where.register_forward_hook(lambda _m, _i, out: seen.append(out))
    torch.testing.assert_close(model(tokens), plain, atol=1e-4, rtol=0)
    hook.remove()
    assert seen[0].shape == (1, 4, 7, 7)
    torch.testing.assert_close(seen[0].sum(-1), torch.ones(1, 4, 7))
    assert (seen[0].triu(1) == 0).all()
    hook = where.register_forward_hook(lambda _m, _i, out: torch.eye(7).expand_as(out))
    assert not torch.allclose(model(tokens), plain, atol=1e-2)
    hook.remove()
    assert torch.equal(model(tokens), plain)


def test_the_same_seed_gives_the_same_weights() -> None:
    config = ModelConfig(**BASE)
    one, same, other = Decoder(config, seed=1), Decoder(config, seed=1), Decoder(config, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.embedding.weight, other.embedding.weight)


@torch.inference_mode()
def test_initial_weights_are_gpt2_s() -> None:
    config = ModelConfig(**{**BASE, "hidden_size": 256, "intermediate_size": 512, "initializer_range": 0.02})
    model = Decoder(config)
    block = model.blocks[0]
    assert block.attention.query.weight.std() == pytest.approx(0.02, rel=0.05)
    assert block.attention.output.weight.std() == pytest.approx(0.02 / 6**0.5, rel=0.05)
    assert block.feed_forward.down.weight.std() == pytest.approx(0.02 / 6**0.5, rel=0.05)
    assert torch.equal(block.attention_norm.weight, torch.ones(256))


def test_past_the_learned_positions_is_refused() -> None:
    with pytest.raises(InputError, match="position 40 is past the context: learned positions end at 39"):
        make("learned")(random_tokens(1, 41))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 0}, r"hidden_size = 0: input should be greater than 0"),
        ({"num_heads": 5}, r"hidden_size = 32 must be a multiple of num_heads = 5"),
        ({"num_kv_heads": 3}, r"num_kv_heads = 3 must divide num_heads = 4"),
        ({"activation": "swish"}, r"activation = 'swish': input should be 'relu', 'gelu'"),
        ({"hiden_size": 3}, r"there is no field 'hiden_size' \(did you mean 'hidden_size'\?\)"),
        ({"head_dim": 7}, r"head_dim = 7 must be even"),
        ({"window_layers": (True, False, True)}, r"window_layers is given, so window must be too"),
        ({"window": 3, "window_layers": (True,)}, r"window_layers has 1 entries and num_layers = 3"),
        ({"rope": {"scaling": "yarn", "factor": 2.0}}, r"'yarn' needs rope\.original_max_positions"),
        ({"rope": {"theta": -1.0}}, r"rope\.theta = -1\.0"),
        ({"local_rope": {}}, r"local_rope is of the layers with a window"),
        ({"norm_eps": float("nan")}, r"norm_eps"),
    ],
)
def test_a_wrong_config_names_field_value_and_what_is_allowed(change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ModelConfig(**{**BASE, **change})


def test_a_missing_field_is_named() -> None:
    with pytest.raises(InputError, match="the field 'vocab_size' is missing"):
        ModelConfig(hidden_size=8, num_layers=1, num_heads=1, intermediate_size=8, max_positions=8)


def test_the_usual_scale_is_said_in_one_way() -> None:
    assert ModelConfig(**BASE, attention_scale=8**-0.5) == ModelConfig(**BASE)
    assert ModelConfig(**BASE, attention_scale=0.5).attention_scale == 0.5
