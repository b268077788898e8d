"""Models through GGUF: what we write transformers opens with equal logits, and SmolLM2 is the same model in both."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import pellucid
from pellucid.checkpoints.describe import told_by_gguf
from pellucid.checkpoints.gguf_config import choose_architecture, read_config, rope_tensor, write_metadata
from pellucid.checkpoints.gguf_models import read_gguf
from pellucid.checkpoints.gguf_read import GGUF
from pellucid.checkpoints.gguf_rope import llama3_factors
from pellucid.checkpoints.gguf_save import save_gguf
from pellucid.checkpoints.gguf_vocabulary import vocabulary_metadata
from pellucid.checkpoints.gguf_write import write_gguf
from pellucid.checkpoints.save import About
from pellucid.checkpoints.source import find_source
from pellucid.errors import InputError
from pellucid.layers.positions import Rope
from pellucid.models.config import ModelConfig
from pellucid.models.decoder import Decoder
from pellucid.models.families import family_for
from pellucid.tokenizer.formats.tiktoken import from_ranks
from pellucid.tokenizer.tokenizer import Tokenizer
from tests.checkpoints.tiny import CONFIGS, LLAMA3, SIZES, logits, random_model, same_weights, tiny_tokenizer

logging.getLogger("transformers").setLevel(logging.ERROR)


@pytest.mark.parametrize("name", CONFIGS)
def test_there_and_back(name: str, tmp_path: Path) -> None:
    model, path = random_model(CONFIGS[name]), tmp_path / "model.gguf"
    save_gguf(model, tiny_tokenizer(), path, kind="f32")
    back, tokenizer = read_gguf(path)
    assert choose_architecture(model.config) == name.split("-")[0]
    if model.config.norm_offset:  # one is added in the file: a last bit may go
        ours, theirs = dict(model.named_parameters()), dict(back.named_parameters())
        assert all(torch.allclose(ours[n], theirs[n], rtol=0, atol=1.2e-7) for n in ours)
        assert torch.allclose(logits(model), logits(back), atol=1e-5)
    else:
        assert same_weights(model, back) and torch.equal(logits(model), logits(back))
    assert tokenizer.encode("on the 12 pellucid things") == tiny_tokenizer().encode("on the 12 pellucid things")
    assert back.generation_config == {"bos_token_id": 263, "eos_token_id": 264, "pad_token_id": 262}


# What transformers' GGUF loading takes for granted instead of reading it (llama.cpp reads it).
GRANTED: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-tied-wide-heads": {},
    "qwen2": {},
    "qwen3": {"head_dim": 128},
    "gemma2": {"head_dim": 256, "attention_scale": 256**-0.5},
    "gemma3": {"head_dim": 256, "attention_scale": 256**-0.5, "rope": Rope(theta=1000000.0)},
    "gpt2": {"intermediate_size": 256, "max_positions": 1024},
}


@pytest.mark.parametrize("name", GRANTED)
def test_transformers_opens_what_we_write(name: str, tmp_path: Path) -> None:
    model = random_model(ModelConfig(**CONFIGS[name].model_dump() | GRANTED[name]))
    save_gguf(model, tiny_tokenizer(), tmp_path / "model.gguf", kind="f32")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="model.gguf", dtype=torch.float32, attn_implementation="eager"
    ).eval()
    tokens = torch.arange(7, 31)[None]
    with torch.no_grad():
        assert torch.allclose(theirs(tokens).logits, logits(model), atol=1e-4)


@pytest.mark.parametrize(("kind", "dtype"), [("f16", torch.float16), ("bf16", torch.bfloat16), ("q8_0", torch.float32)])
def test_a_file_of_each_kind_loads_as_its_own_dtype(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = random_model(CONFIGS["llama"])
    save_gguf(model, tiny_tokenizer(), tmp_path / "m.gguf", kind=kind)
    back, _ = read_gguf(tmp_path / "m.gguf")
    assert {parameter.dtype for parameter in back.parameters()} == {dtype}
    for ours, theirs in zip(model.parameters(), back.parameters(), strict=True):
        bound = ours.abs().amax(-1, keepdim=True) * {"f16": 2**-10, "bf16": 2**-7, "q8_0": 1 / 200}[kind]
        assert bool(((ours - theirs.float()).abs() <= bound).all())
    cast, _ = read_gguf(tmp_path / "m.gguf", torch.bfloat16)
    assert {parameter.dtype for parameter in cast.parameters()} == {torch.bfloat16}


def test_the_file_says_what_it_is(tmp_path: Path) -> None:
    model = random_model(CONFIGS["llama"])
    model.generation_config = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "eos_token_id": 264}
    about = About(base="smollm2", steps=100, tokens_seen=5 * 10**9, last_loss=2.5)
    save_gguf(model, tiny_tokenizer(), tmp_path / "m.gguf", about=about)
    file = GGUF(tmp_path / "m.gguf")
    told = told_by_gguf(file)
    assert told.pop("version") == pellucid.__version__
    assert told == {"base": "smollm2", "steps": 100, "tokens_seen": 5 * 10**9, "last_loss": 2.5}
    assert read_gguf(tmp_path / "m.gguf")[0].generation_config["temperature"] == 0.6
    assert file.metadata["tokenizer.chat_template"] == tiny_tokenizer().chat_template
    assert file.metadata["tokenizer.ggml.pre"] == "gpt-2" and file.metadata["tokenizer.ggml.eos_token_id"] == 264
    types, tokens = file.metadata["tokenizer.ggml.token_type"], file.metadata["tokenizer.ggml.tokens"]
    assert len(tokens) == SIZES["vocab_size"] and types[262:] == [3, 3, 3, 4, 5, 5, 5, 5, 5, 5]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "relu"}, r"the nearest, 'llama', cannot have activation = 'relu'"),
        ({"position": "alibi"}, r"cannot have position = 'alibi'"),
        ({"window": 8}, r"'llama', cannot have window = 8"),
        ({"norm_position": "post"}, r"cannot have norm_position = 'post'"),
        ({"attention_scale": 0.3}, r"cannot have attention_scale = 0.3"),
        ({"qk_norm": True, "logit_softcap": 30.0}, r"'qwen3', cannot have logit_softcap = 30.0"),
        ({"norm": "layernorm"}, r"'gpt2', cannot have .*activation = 'swiglu'"),
        ({"rope": Rope(scaling="dynamic", factor=2.0)}, r"'dynamic' cannot be said in GGUF"),
    ],
)
def test_a_model_that_no_architecture_expresses_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        choose_architecture(ModelConfig(**SIZES | changes))


def test_a_window_as_long_as_the_context_is_none() -> None:
    assert choose_architecture(ModelConfig(**SIZES, window=SIZES["max_positions"])) == "llama"


@pytest.mark.parametrize("theta", [10000.0, 500000.0])
@pytest.mark.parametrize("known", [True, False])
def test_the_factors_of_llama_3_give_away_the_rule(theta: float, known: bool, tmp_path: Path) -> None:
    rope = LLAMA3.model_copy(update={"theta": theta, "original_max_positions": 8192 if known else 2048})
    config = ModelConfig(**SIZES, head_dim=64, rope=rope)
    factors = torch.from_numpy(rope_tensor(config))
    metadata = {"general.architecture": "llama", **write_metadata(config, "llama")}
    del metadata["llama.rope.scaling.original_context_length"]  # other writers do not write it
    plan = [("token_embd.weight", (272, 64), "F32"), ("output.weight", (272, 64), "F32")]
    tensors = {"token_embd.weight": torch.zeros(272, 64), "output.weight": torch.zeros(272, 64)}
    write_gguf(
        tmp_path / "m.gguf",
        metadata,
        [*plan, ("rope_freqs.weight", (32,), "F32")],
        [*tensors.items(), ("rope_freqs.weight", factors)],
    )
    read = read_config(GGUF(tmp_path / "m.gguf")).rope
    assert torch.allclose(torch.from_numpy(llama3_factors(read, 64)), factors, rtol=1e-4)
    assert read == rope if known else abs(read.original_max_positions / read.high_frequency_factor - 512) < 1


def broken(tmp_path: Path, change: str) -> Path:
    """A model file without a tensor, with one too many, or with one of another shape."""
    save_gguf(random_model(CONFIGS["llama"]), tiny_tokenizer(), tmp_path / "whole.gguf", kind="f32")
    file = GGUF(tmp_path / "whole.gguf")
    tensors = {name: file.tensor(name) for name in file.tensors}
    if change == "missing":
        del tensors["blk.1.ffn_up.weight"]
    elif change == "spare":
        tensors["blk.1.ffn_upp.weight"] = torch.zeros(2)
    else:
        tensors["blk.1.ffn_up.weight"] = torch.zeros(95, 64)
    plan = [(name, tuple(tensor.shape), "F32") for name, tensor in tensors.items()]
    write_gguf(tmp_path / "broken.gguf", file.metadata, plan, tensors.items())
    return tmp_path / "broken.gguf"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", r"broken.gguf: the tensor 'blk.1.ffn_up.weight' is missing"),
        ("spare", r"'blk.1.ffn_upp.weight' has no place .*\(did you mean 'blk.1.ffn_up.weight'\?\)"),
        ("shape", r"'blk.1.ffn_up.weight' has the shape \(95, 64\); the config asks for \(96, 64\)"),
    ],
)
def test_a_wrong_tensor_is_named(change: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read_gguf(broken(tmp_path, change))


def test_an_unknown_architecture_is_named(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", {"general.architecture": "mamba"}, [], [])
    with pytest.raises(InputError, match=r"the architecture 'mamba' is not read; llama, qwen2, .* are"):
        read_gguf(tmp_path / "m.gguf")


def test_what_llama_cpp_cannot_split_is_refused(tmp_path: Path) -> None:
    split = {"type": "Split", "pattern": {"Regex": "[a-z]+"}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    strange = tiny_tokenizer(pre_tokenizer={"type": "Sequence", "pretokenizers": [split, byte_level]})
    model = random_model(CONFIGS["llama"])
    with pytest.raises(InputError, match=r"splits text by '\[a-z\]\+', which llama.cpp does not know"):
        save_gguf(model, strange, tmp_path / "m.gguf")
    spaced = tiny_tokenizer(pre_tokenizer={**byte_level, "add_prefix_space": True, "use_regex": True})
    with pytest.raises(InputError, match="puts a space before every text"):
        save_gguf(model, spaced, tmp_path / "m.gguf")
    with pytest.warns(UserWarning, match=r"normalizer \(NFC\)"):
        save_gguf(model, tiny_tokenizer(normalizer={"type": "NFC"}), tmp_path / "m.gguf")


def test_only_a_gguf_file_is_replaced(tmp_path: Path) -> None:
    model, tokenizer, path = random_model(CONFIGS["llama"]), tiny_tokenizer(), tmp_path / "notes.gguf"
    path.write_text("my notes")
    with pytest.raises(InputError, match="is no GGUF file"):
        save_gguf(model, tokenizer, path)
    assert path.read_text() == "my notes"
    path.unlink()
    save_gguf(model, tokenizer, path)
    save_gguf(model, tokenizer, path, kind="q8_0")
    assert [entry.name for entry in tmp_path.iterdir()] == ["notes.gguf"]
    with pytest.raises(InputError, match=r"type = 'q4': it must be one of f32, f16, bf16, q8_0, q4_0, q4_1"):
        save_gguf(model, tokenizer, path, kind="q4")


@pytest.fixture(scope="module")
def theirs() -> tuple[transformers.PreTrainedModel, Path]:
    path = find_source("smollm2").path
    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    return model.eval(), path


def test_smollm2_is_what_it_is_to_transformers(
    smollm2: tuple[Decoder, Tokenizer], theirs: tuple[transformers.PreTrainedModel, Path]
) -> None:
    model, _ = smollm2
    family = family_for("llama")
    ours = family.to_theirs(model.config, dict(model.named_parameters()))
    expected = dict(theirs[0].named_parameters())
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in ours)


PROMPTS = ["The capital of France is", "def fibonacci(n):\n", "Die Sonne scheint und", "1, 2, 3, 5, 8,"]


@pytest.mark.slow
@pytest.mark.parametrize("prompt", PROMPTS)
def test_smollm2_says_what_it_says_in_transformers(
    prompt: str, smollm2: tuple[Decoder, Tokenizer], theirs: tuple[transformers.PreTrainedModel, Path]
) -> None:
    model, tokenizer = smollm2
    start = torch.tensor([tokenizer.encode(prompt)])
    with torch.no_grad():
        expected = theirs[0].generate(
            start, attention_mask=torch.ones_like(start), max_new_tokens=64, do_sample=False, eos_token_id=None
        )
        assert greedy(model, start, 64).tolist() == expected.tolist()


def greedy(model: Decoder, tokens: Tensor, count: int) -> Tensor:
    for _ in range(count):
        tokens = torch.cat((tokens, model(tokens)[:, -1:].argmax(-1)), dim=1)
    return tokens


def test_a_vocabulary_of_ranks_can_be_written() -> None:
    """tiktoken's vocabularies have no list of merges: llama.cpp gets every way to put a token together."""
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"he": 256, b"ll": 257, b"hell": 258}
    tokenizer = from_ranks(ranks, "llama3", {"<|endoftext|>": 259})
    metadata = vocabulary_metadata(tokenizer, 260)
    again = Tokenizer.from_gguf(metadata)
    assert metadata["tokenizer.ggml.merges"] == ["h e", "l l", "he ll"]
    assert again.encode("hello shell") == tokenizer.encode("hello shell")
