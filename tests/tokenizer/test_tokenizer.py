"""What a `Tokenizer` promises, on real vocabularies of every kind."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.errors import InputError
from pellucid.tokenizer.alphabet import ALPHABET, CHARACTER_OF, from_alphabet, to_alphabet
from pellucid.tokenizer.formats.tiktoken import from_ranks
from pellucid.tokenizer.pipelines import LibraryPipeline, OurPipeline, anchored, library_tokenizer
from pellucid.tokenizer.tokenizer import Tokenizer
from tests.tokenizer.vocabularies import TEXTS, TORTURE, tokenizer

KINDS = ("smollm2", "llama-bpe", "llama-spm", "bert-bge", "nomic-bert-moe", "qwen2")
FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")
BYTES = {bytes([byte]): byte for byte in range(256)}


def small(**parts: Any) -> Tokenizer:
    """A byte-level vocabulary of a few merges, with parts of its definition exchanged."""
    ranks = BYTES | {token: 256 + n for n, token in enumerate([b"he", b"ll", b"hell", b"hello", b" w", b"or", b" wor"])}
    definition = dict(from_ranks(ranks, "gpt2", {}).definition)
    merges = ["h e", "l l", "he ll", "hell o", "Ġ w", "o r", "Ġw or"]
    definition["model"] = definition["model"] | {"merges": merges, "ignore_merges": False} | parts.pop("model", {})
    for entry in parts.get("added_tokens", ()):
        for flag in FLAGS:
            entry.setdefault(flag, False)
    return Tokenizer(definition | parts)


def ids_of_library(ours: Tokenizer, text: str, *, special: bool = True) -> list[int]:
    theirs = library_tokenizer(anchored(ours.definition))
    theirs.encode_special_tokens = not special
    return theirs.encode(text, add_special_tokens=False).ids


# --- promise T1 -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_text_makes_no_control_token(name: str) -> None:
    ours = tokenizer(name)
    control = {number for number in ours.special_tokens.values() if number != ours.unk_id}
    spelt = sorted(ours.special_tokens)[:40]
    fragment = st.one_of(st.sampled_from(spelt), st.text("<|>[]/ isCLS▁_", max_size=6), st.sampled_from(TORTURE))

    @given(st.lists(fragment, max_size=8).map("".join))
    @settings(max_examples=150)
    def none_made(text: str) -> None:
        assert not control.intersection(ours.encode(text))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # bytes that SmolLM2 lacks
        none_made()
    for content, number in ours.special_tokens.items():
        plain = ours.encode(content)
        assert number not in plain or number == ours.unk_id
        assert plain, content
        assert ours.encode_batch([content]) == [plain]
        assert ours.encode(content, allow_special=True) == [number]


def test_not_even_where_a_merge_makes_it() -> None:
    """`hello` is a token of the model, made by its merges, and is declared control."""
    ours = small(added_tokens=[{"id": 259, "content": "hello", "special": True}])
    assert isinstance(ours.pipeline, OurPipeline)
    assert ours.encode("hello") == [258, ord("o")]
    assert ours.encode("hello", allow_special=True) == [259]
    library = Tokenizer(ours.definition)
    library.pipeline = LibraryPipeline(ours.definition)
    assert library.encode("hello") == [258, ord("o")]
    assert library.encode("hello", allow_special=True) == [259]


@pytest.mark.parametrize("name", ["llama-spm", "bert-bge", "nomic-bert-moe"])
def test_ids_of_added_tokens_are_the_files_even_with_gaps(name: str) -> None:
    size = tokenizer(name).vocab_size
    flags = dict.fromkeys(FLAGS, False)
    more = [
        {**flags, "id": size + 3, "content": "<one>", "special": True},
        {**flags, "id": size + 7, "content": "<two>"},
    ]
    definition = tokenizer(name).definition
    ours = Tokenizer(definition | {"added_tokens": [*definition["added_tokens"], *more]})
    assert isinstance(ours.pipeline, LibraryPipeline)
    assert ours.encode("<one><two>", allow_special=True) == [size + 3, size + 7]
    assert ours.encode("<one><two>")[-1] == size + 7 and size + 3 not in ours.encode("<one><two>")
    assert ours.decode([size + 3, size + 7]).replace(" ", "") == "<one><two>"
    with pytest.raises(InputError, match=f"no token {size + 1}"):
        ours.decode([size + 1])


def test_control_needs_its_own_permission_not_the_added_ones() -> None:
    """Added tokens that are not special are vocabulary: they are found in any text, as transformers does."""
    added = [{"id": 300, "content": "<tool>"}, {"id": 301, "content": "<end>", "special": True}]
    ours = small(added_tokens=added)
    assert ours.encode("<tool><end>") == [300, *b"<end>"]
    assert ours.encode("<tool><end>", allow_special=True) == [300, 301]
    assert ours.special_tokens == {"<end>": 301} and ours.added_tokens == {"<tool>": 300, "<end>": 301}


# --- equal to the `tokenizers` library --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["smollm2", "llama-bpe", "qwen2", "deepseek-llm", "falcon"])
def test_our_encoder_equals_the_library_on_the_same_file(name: str) -> None:
    ours = tokenizer(name)
    assert isinstance(ours.pipeline, OurPipeline)
    theirs = library_tokenizer(ours.definition)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")

        @given(TEXTS)
        @settings(max_examples=200)
        def equal(text: str) -> None:
            assert ours.encode(text, allow_special=True) == theirs.encode(text, add_special_tokens=False).ids

        equal()
        for text in TORTURE:
            assert ours.encode(text, allow_special=True) == theirs.encode(text, add_special_tokens=False).ids


PRE_TOKENIZERS: dict[str, dict[str, Any]] = {
    "regex": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    "no regex": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    "prefix space": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    "digits": {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        ],
    },
    "digit runs": {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Digits", "individual_digits": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        ],
    },
    "string, then line ends": {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"String": "ll"}, "behavior": "Isolated", "invert": False},
            {"type": "Split", "pattern": {"Regex": r"\s+$|^h"}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        ],
    },
}


@pytest.mark.parametrize("kind", PRE_TOKENIZERS)
@pytest.mark.parametrize("normalizer", [None, "NFC", "NFKC", "Lowercase"])
def test_parts_of_byte_level_files(kind: str, normalizer: str | None) -> None:
    ours = small(pre_tokenizer=PRE_TOKENIZERS[kind], normalizer=normalizer and {"type": normalizer})
    assert isinstance(ours.pipeline, OurPipeline)
    theirs = library_tokenizer(ours.definition)

    @given(st.one_of(TEXTS, st.text("helo wr1٣\n", max_size=40)))
    @settings(max_examples=60)
    def equal(text: str) -> None:
        assert ours.encode(text) == theirs.encode(text).ids

    equal()


@pytest.mark.parametrize(
    "parts",
    [
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}},
        {
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Split", "pattern": {"Regex": "l+"}, "behavior": "MergedWithNext", "invert": False},
                    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
                ],
            }
        },
        {"model": {"end_of_word_suffix": "o"}},
        {"model": {"dropout": 0.5}},
    ],
)
def test_unusual_parts_are_the_librarys(parts: dict[str, Any]) -> None:
    """Never left out in silence: a file with a part that our encoder lacks is run by the library, as it is."""
    assert isinstance(small(**parts).pipeline, LibraryPipeline)


@given(
    st.lists(st.fixed_dictionaries({flag: st.booleans() for flag in FLAGS}), min_size=3, max_size=3),
    st.lists(st.sampled_from(["<a>", "<A>", "<ab>", "ll", " ", "  ", "\n", "x", "hell", "é", "1"]), max_size=8).map(
        "".join
    ),
    st.sampled_from([None, {"type": "Lowercase"}]),
)
@settings(max_examples=300)
def test_flags_of_added_tokens(flags: list[dict[str, bool]], text: str, normalizer: dict[str, str] | None) -> None:
    contents = ("<A>", "<ab>", "ll")
    flags[2]["special"] = False  # as a control token, what merges make of it would be out of reach too
    added = [
        {"id": number, "content": content, **chosen}
        for number, content, chosen in zip((300, 301, 257), contents, flags, strict=True)
    ]
    ours = small(added_tokens=added, normalizer=normalizer)
    assert ours.encode(text, allow_special=True) == ids_of_library(ours, text)


@pytest.mark.parametrize("name", ["smollm2", "llama-spm", "bert-bge", "nomic-bert-moe", "gemma-4"])
def test_decoding_equals_the_library(name: str) -> None:
    ours = tokenizer(name)
    theirs = library_tokenizer(ours.definition)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for text in TORTURE:
            ids = ours.encode(text)
            assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False)
            assert ours.decode(ids, skip_special=True) == theirs.decode(ids, skip_special_tokens=True)


def test_merges_in_both_spellings() -> None:
    old, new = small(), small(model={"merges": [["h", "e"], ["l", "l"], ["he", "ll"], ["hell", "o"], ["Ġ", "w"]]})
    assert old.encode("hello") == new.encode("hello") == ids_of_library(new, "hello") == [259]
    assert old.encode(" wor") == [262] and new.encode(" wor") == ids_of_library(new, " wor") == [260, *b"or"]


# --- text that is no text, tokens that are no tokens ------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_surrogates(name: str) -> None:
    """A pair is its character; a lone one is U+FFFD, as in tiktoken."""
    ours = tokenizer(name)
    assert ours.encode("a \ud83d\ude00 b") == ours.encode("a \U0001f600 b")
    assert ours.encode("a \ud83d b \udfff") == ours.encode("a \ufffd b \ufffd")
    assert ours.encode_batch(["\ud83d"]) == [ours.encode("\ufffd")]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("wrong", [-1, 10**9, "size"])
def test_an_id_that_is_none(name: str, wrong: int | str) -> None:
    ours = tokenizer(name)
    number = ours.vocab_size if isinstance(wrong, str) else wrong
    with pytest.raises(InputError, match=f"no token {number}.*0 to {ours.vocab_size - 1}"):
        ours.decode([5, number])
    with pytest.raises(InputError, match=f"no token {number}"):
        ours.stream_decoder().push(number)
    with pytest.raises(InputError, match=f"no token {number}"):
        ours.token_bytes(number)


def test_bytes_that_are_no_text() -> None:
    ours = small()
    assert ours.decode([0xFF, ord("a"), 0xE4, 0xBD]) == b"\xffa\xe4\xbd".decode("utf-8", "replace") == "\ufffda\ufffd"
    assert ours.decode([]) == ""


def test_a_byte_that_the_vocabulary_lacks_is_said() -> None:
    """SmolLM2 has no token for 0x04; the `tokenizers` library leaves the byte out in silence."""
    ours = Tokenizer(tokenizer("smollm2").definition)  # new: one that has met the byte remembers it
    with pytest.warns(UserWarning, match="no token for the byte 0x04"):
        ids = ours.encode("a\x04b")
    assert ids == ids_of_library(ours, "a\x04b") == ours.encode("a") + ours.encode("b")


def test_truncation_and_padding_of_the_file_are_not_applied() -> None:
    cut = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    definition = tokenizer("bert-bge").definition | {"truncation": cut}
    text = "one two three four five"
    assert Tokenizer(definition).encode(text) == tokenizer("bert-bge").encode(text)
    assert len(Tokenizer(definition).encode(text)) == 5


@pytest.mark.parametrize(
    ("decoder", "said"),
    [
        ({"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": True}, "'CTC'"),
        ({"type": "BPEDecoder", "suffix": "</w>"}, "'BPEDecoder'"),
        ({"type": "Replace", "pattern": {"Regex": "a+"}, "content": ""}, "only strings"),
        ({"type": "Strip", "content": " ", "start": 0, "stop": 1}, "the end of the text"),
    ],
)
def test_a_decoder_that_cannot_stream_is_refused(decoder: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        small(decoder=decoder)


def test_an_empty_vocabulary() -> None:
    with pytest.raises(InputError, match="empty"):
        Tokenizer({"model": {"type": "BPE", "vocab": {}, "merges": []}})


# --- the small print --------------------------------------------------------------------------------------------


def test_beginning_of_sequence() -> None:
    llama = tokenizer("llama-spm")
    assert llama.adds_bos and llama.bos_id == 1
    assert llama.encode("Hi", add_bos=True) == [1, *llama.encode("Hi")]
    assert llama.encode("<s> Hi", allow_special=True, add_bos=True).count(1) == 1
    assert not tokenizer("smollm2").adds_bos
    with pytest.raises(InputError, match="no beginning-of-sequence token"):
        small().encode("Hi", add_bos=True)


def test_named_ids() -> None:
    smollm2 = tokenizer("smollm2")
    assert (smollm2.bos_id, smollm2.eos_id, smollm2.pad_id, smollm2.vocab_size) == (1, 2, 2, 49152)
    assert smollm2.stop_ids == (2, 0)  # <|im_end|> and <|endoftext|>
    assert tokenizer("llama-bpe").stop_ids == (128001, 128009)
    assert tokenizer("gemma-4").stop_ids == (1, 106)
    assert small().stop_ids == () and small().chat_template is None


def test_token_bytes() -> None:
    smollm2, llama = tokenizer("smollm2"), tokenizer("llama-spm")
    (word,) = smollm2.encode(" lighthouse")
    assert smollm2.token_bytes(word) == b" lighthouse"
    assert smollm2.token_bytes(2) == b"<|im_end|>"
    assert llama.token_bytes(llama.vocab["▁Hello"]) == b" Hello"
    assert llama.token_bytes(llama.vocab["<0xE4>"]) == b"\xe4"


@given(st.binary(max_size=20))
def test_the_alphabet_of_bytes(data: bytes) -> None:
    assert from_alphabet(to_alphabet(data)) == data
    assert len(to_alphabet(data)) == len(data)


def test_the_alphabet_is_the_librarys() -> None:
    assert set(tokenizers.pre_tokenizers.ByteLevel.alphabet()) == ALPHABET
    assert CHARACTER_OF[0x20] == "Ġ" and CHARACTER_OF[0x0A] == "Ċ"
    with pytest.raises(InputError, match="'☃'"):
        from_alphabet("a☃")


def test_loading_imports_no_torch(tmp_path: Path) -> None:
    import subprocess
    import sys

    from_ranks(BYTES, "gpt2", {}).save(tmp_path)
    script = (
        "import sys, json; from pellucid.tokenizer.tokenizer import Tokenizer; "
        f"t = Tokenizer.load({str(tmp_path)!r}); assert t.decode(t.encode('hi')) == 'hi'; "
        "print(json.dumps([m for m in ('torch', 'transformers') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(done.stdout) == []
