"""The native path gives what the Python path gives, for every pattern, vocabulary and text, and from many threads."""

from __future__ import annotations

import copy
import itertools
import random
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid import native
from pellucid.tokenizer.bpe import BytePairEncoder
from pellucid.tokenizer.bpe_native import _RULES, SOURCE, NativeEncoder
from pellucid.tokenizer.patterns import PATTERNS
from pellucid.tokenizer.pipelines import OurPipeline
from pellucid.tokenizer.tokenizer import Tokenizer
from tests.tokenizer.test_bpe import RANKS, by_tiktoken, by_tokenizers, ranks
from tests.tokenizer.test_bpe import TORTURE as LONG_TORTURE
from tests.tokenizer.test_patterns import exactly, texts
from tests.tokenizer.test_vocabularies import WITH_IDS, WITHOUT_IDS
from tests.tokenizer.vocabularies import TEXTS, TORTURE, metadata, tokenizer

pytestmark = pytest.mark.skipif(native.load(SOURCE) is None, reason=f"no native path: {native.why_not(SOURCE)}")

ASCII = st.text(st.characters(max_codepoint=127), max_size=40)


def native_of(encoder: BytePairEncoder) -> NativeEncoder:
    assert encoder._native is not None
    return encoder._native


def spelling(text: str, split: str, longest: int) -> BytePairEncoder:
    """An encoder whose ids show where `text` is split: nothing merges, and its right pre-tokens are tokens, as are its
    substrings of at most `longest` characters."""
    parts = (text[i:j].encode() for i in range(len(text)) for j in range(i + 1, min(i + longest, len(text)) + 1))
    every_byte = (bytes([byte]) for byte in range(256))
    vocab = {
        part: number
        for number, part in enumerate(dict.fromkeys((*every_byte, *map(str.encode, exactly(split, text)), *parts)))
    }
    return BytePairEncoder(vocab, [], split, ignore_merges=True)


def splits(encoder: BytePairEncoder, text: str) -> list[str]:
    spelt = {number: part for part, number in encoder.vocab.items()}
    return [spelt[number].decode() for number in native_of(encoder).encode(text) or ()]


@pytest.mark.parametrize("name", PATTERNS)
@given(texts | ASCII)
@settings(max_examples=200)
def test_borders_are_those_of_the_pattern(name: str, text: str) -> None:
    """Also of deepseek3, which has no rules of its own here and is split in Python."""
    assert splits(spelling(text, name, len(text)), text) == exactly(name, text)


@pytest.mark.parametrize("name", PATTERNS)
def test_every_pair_of_ascii_characters(name: str) -> None:
    for a in map(chr, range(128)):
        text = "".join(a + b for b in map(chr, range(128)))
        assert splits(spelling(text, name, 12), text) == exactly(name, text)


@pytest.mark.parametrize("name", PATTERNS)
def test_every_triple_of_what_borders_depend_on(name: str) -> None:
    """Contractions and what folds to them, letters of either case and of none, marks, digits, white space."""
    for three in itertools.product(["'", "ſ", "S", "l", "中", "\u0301", "1", " ", "\n", "!", "/"], repeat=3):
        text = "".join(three)
        assert splits(spelling(text, name, 3), text) == exactly(name, text)


def test_which_patterns_are_native() -> None:
    without = {name for name, chain in PATTERNS.items() if not native_of(spelling("", name, 0))._splits}
    assert without == {"deepseek3"} == set(PATTERNS) - {*_RULES, "llama3"}  # llama3 splits as cl100k does


@pytest.mark.filterwarnings("ignore:the file does not say how")
@pytest.mark.parametrize("name", (*WITH_IDS, *WITHOUT_IDS, "smollm2"))
def test_every_vocabulary(name: str) -> None:
    pipeline = tokenizer(name).pipeline
    if not isinstance(pipeline, OurPipeline):
        pytest.skip("not byte-level BPE")
    encoder = pipeline.encoder
    for text in (*TORTURE, *LONG_TORTURE):
        with warnings.catch_warnings():  # of bytes without a token, which are tested below
            warnings.simplefilter("ignore")
            expected = encoder._encode_in_python(text)
            assert encoder.encode(text) == expected
        assert native_of(encoder).encode(text) in (expected, None)


@pytest.mark.parametrize("name", ["llama-bpe", "smollm2", "qwen35", "deepseek-llm"])
@given(TEXTS)
def test_any_text(name: str, text: str) -> None:
    pipeline = tokenizer(name).pipeline
    assert isinstance(pipeline, OurPipeline)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert pipeline.encoder.encode(text) == pipeline.encoder._encode_in_python(text)


def test_a_byte_without_a_token_is_declined_and_said() -> None:
    pipeline = Tokenizer.from_gguf(metadata("smollm2")).pipeline  # a new one: it has said nothing yet
    assert isinstance(pipeline, OurPipeline)
    assert native_of(pipeline.encoder).encode("a\x04b") is None
    with pytest.warns(UserWarning, match="no token for the byte 0x04"):
        assert pipeline.encoder.encode("a\x04b") == pipeline.encoder.encode("a") + pipeline.encoder.encode("b")
    assert native_of(pipeline.encoder).encode("ab") == pipeline.encoder.encode("ab")  # it goes on


@given(st.data())
def test_vocabularies_that_no_training_gives(data: st.DataObject) -> None:
    """Tokens of any bytes, some bytes missing, by either rule: the same ids, or declined where Python may refuse."""
    alphabet = st.text("abé", min_size=1, max_size=5).map(str.encode)
    tokens = data.draw(st.lists(alphabet, unique=True, min_size=1, max_size=12))
    numbers = data.draw(st.permutations(range(len(tokens))))
    pairs = st.tuples(alphabet, alphabet)
    merges = data.draw(st.none() | st.lists(pairs, max_size=8))
    encoder = BytePairEncoder(
        {b"a": 90, b"b": 91, **dict(zip(tokens, numbers, strict=True))},
        merges,
        data.draw(st.sampled_from([None, "gpt2", "[b]"])),
        ignore_merges=data.draw(st.booleans()),
    )
    text = data.draw(st.text("ab", max_size=30) | st.text("abé", max_size=10)) * data.draw(st.sampled_from([1, 20]))
    found = native_of(encoder).encode(text)
    if found is not None:
        assert found == encoder._encode_in_python(text)
    else:
        assert "é" in text or merges  # all that can lack a token here: the bytes of é, or what a merge makes


@pytest.mark.parametrize("name", RANKS)
@pytest.mark.parametrize("fill", ["a", " ", "^", "\n", "=-", "中文", "letters"])
def test_long_degenerate_text(name: str, fill: str) -> None:
    """Hundreds of thousands of characters in one pre-token; quadratic work would not end within the time limit."""
    ours, _ = by_tiktoken(name)
    letters = "".join(random.choices("abcdefghijklmnopqrstuvwxyz", k=10**5))
    text = letters if fill == "letters" else fill * (10**5 // len(fill))
    assert native_of(ours).encode(text) == ours._encode_in_python(text)
    million = text * 10
    ids = native_of(ours).encode(million)
    spelt = {number: token for token, number in ours.vocab.items()}
    assert ids is not None and b"".join(spelt[number] for number in ids) == million.encode()


@cache
def many_texts() -> list[str]:
    words = [token.decode("utf-8", "ignore") for token in list(ranks("cl100k_base"))[:30000]]
    return ["".join(random.Random(seed).choices(words, k=3000)) for seed in range(32)]


def test_many_threads() -> None:
    ours = BytePairEncoder(ranks("cl100k_base"), None, "cl100k", ignore_merges=True)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ours.encode, many_texts() * 2))
    assert found == [ours._encode_in_python(text) for text in many_texts()] * 2


def test_memory_is_emptied_when_full() -> None:
    """More pre-tokens than are remembered, twice."""
    ours, _ = by_tokenizers()
    text = " ".join(f"{number:x}g" for number in range(300_000))
    first = native_of(ours).encode(text)
    assert first == native_of(ours).encode(text)
    assert first is not None and first[:1000] == ours._encode_in_python(text[:8000])[:1000]


def test_a_copy_outlives_its_original() -> None:
    ours = BytePairEncoder(ranks("r50k_base"), None, "gpt2", ignore_merges=True)
    expected = ours.encode("Hello world")
    twin = copy.deepcopy(ours)
    del ours
    assert twin.encode("Hello world") == expected


@pytest.mark.parametrize("how", ["switched off", "no compiler", "a compiler that fails"])
def test_python_runs_where_native_code_does_not(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "switched off":
        monkeypatch.setenv("PELLUCID_NATIVE", "0")
    else:
        monkeypatch.setenv("PATH", str(tmp_path))
    if how == "a compiler that fails":
        (tmp_path / "c++").write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / "c++").chmod(0o755)
    ours = BytePairEncoder(ranks("cl100k_base"), None, "cl100k", ignore_merges=True)
    assert ours._native is None and native.why_not(SOURCE)
    _, theirs = by_tiktoken("cl100k_base")
    for text in LONG_TORTURE:
        assert ours.encode(text) == theirs(text)
