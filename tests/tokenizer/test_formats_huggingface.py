"""Hugging Face folders: what is saved opens in transformers with equal ids, whatever it was loaded from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from pellucid.errors import InputError
from pellucid.tokenizer.formats.tiktoken import from_ranks
from pellucid.tokenizer.tokenizer import Tokenizer
from tests.tokenizer.vocabularies import TEXTS, TORTURE, tokenizer

BYTES = {bytes([byte]): byte for byte in range(256)}

# A vocabulary, and the model_type of a config.json beside it: by that, transformers chooses a class.
FOLDERS = (
    ("smollm2", "llama"),
    ("smollm2", None),
    ("gpt-2", "gpt2"),
    ("qwen2", "qwen2"),
    ("qwen2", "qwen3"),
    ("llama-bpe", "llama"),
    ("llama-spm", "llama"),
    ("llama-spm", "mistral"),
    ("llama-spm", None),
    ("phi-3", None),
    pytest.param("gemma-4", "gemma2", marks=pytest.mark.slow),
    ("bert-bge", "bert"),
    pytest.param("nomic-bert-moe", "xlm-roberta", marks=pytest.mark.slow),
)


@pytest.mark.filterwarnings("ignore:the vocabulary has no token for the byte")
@pytest.mark.parametrize(("name", "model_type"), FOLDERS)
def test_a_saved_folder_opens_in_transformers_and_here(name: str, model_type: str | None, tmp_path: Path) -> None:
    ours = tokenizer(name)
    ours.save(tmp_path)
    if model_type is not None:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    theirs, back = AutoTokenizer.from_pretrained(tmp_path), Tokenizer.load(tmp_path)

    def equal(text: str) -> None:
        ids = ours.encode(text, allow_special=True)
        assert ids == back.encode(text, allow_special=True) == theirs.encode(text, add_special_tokens=False)
        assert ours.encode(text) == back.encode(text)

    for text in TORTURE:
        equal(text)
        ids = ours.encode(text)
        assert back.decode(ids) == ours.decode(ids) == theirs.decode(ids)
        assert ours.decode(ids, skip_special=True) == theirs.decode(ids, skip_special_tokens=True)
    given(TEXTS)(settings(max_examples=50)(equal))()
    for mine in (ours, back):
        assert (mine.bos_id, mine.eos_id, mine.pad_id) == (
            theirs.bos_token_id,
            theirs.eos_token_id,
            theirs.pad_token_id,
        )
        assert (
            mine.special_tokens.items()
            >= dict(zip(theirs.all_special_tokens, theirs.all_special_ids, strict=True)).items()
        )
        assert mine.chat_template == theirs.chat_template
        assert mine.adds_bos == (theirs.encode("x")[0] == mine.bos_id is not None)
    assert back.vocab_size == ours.vocab_size == len(theirs)
    assert back.added_tokens == ours.added_tokens
    assert theirs.model_max_length == ours.config.get("model_max_length", theirs.model_max_length)


@pytest.mark.parametrize("split", ["gpt2", "cl100k", "o200k", "smollm", "deepseek3"])
def test_a_vocabulary_without_merges_is_spelt_out(split: str, tmp_path: Path) -> None:
    """tiktoken's rule has no merges; a tokenizer.json has. Control tokens keep ids that leave gaps."""
    words = [
        b"th",
        b"the",
        b" t",
        b" the",
        b"aa",
        b"aaa",
        b"aaaa",
        b"  ",
        b"    ",
        b"\xe4\xbd",
        b"\xe4\xbd\xa0",
        b"12",
        b"in",
    ]
    ranks = BYTES | {word: 256 + n for n, word in enumerate(words)}
    ours = from_ranks(ranks, split, {"<|endoftext|>": 400, "<|x|>": 500})
    ours.save(tmp_path)
    theirs, back = AutoTokenizer.from_pretrained(tmp_path), Tokenizer.load(tmp_path)

    @given(st.one_of(TEXTS, st.text("the aain12你\n<|x>", max_size=40)))
    @settings(max_examples=200)
    def equal(text: str) -> None:
        ids = ours.encode(text, allow_special=True)
        assert ids == back.encode(text, allow_special=True) == theirs.encode(text, add_special_tokens=False)

    equal()
    assert ours.encode("the<|x|>", allow_special=True) == [257, 500]
    assert theirs.convert_tokens_to_ids("<|x|>") == 500


def test_templates_by_name(tmp_path: Path) -> None:
    ours = Tokenizer(from_ranks(BYTES, "gpt2", {}).definition, {}, {"default": "{{ 1 }}\n", "tools": "{{ 2 }}"})
    ours.save(tmp_path)
    assert Tokenizer.load(tmp_path).templates == ours.templates
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == {"default": "{{ 1 }}\n", "tools": "{{ 2 }}"}
    listed = [{"name": "default", "template": "old"}, {"name": "rag", "template": "{{ 3 }}"}]
    config = json.loads((tmp_path / "tokenizer_config.json").read_text()) | {"chat_template": listed}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert Tokenizer.load(tmp_path).templates == ours.templates | {"rag": "{{ 3 }}"}


def small_folder(folder: Path, config: dict[str, Any] | None = None, **parts: Any) -> Path:
    definition = from_ranks(BYTES, "gpt2", {}).definition
    definition = definition | {"model": definition["model"] | {"merges": []}} | parts
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_what_only_the_configuration_knows(tmp_path: Path) -> None:
    """Added tokens and roles that tokenizer.json lacks are taken from the configuration, as transformers does."""
    decoder = {"256": {"content": "<tool>", "lstrip": False, "normalized": False, "rstrip": True, "single_word": False}}
    decoder["256"]["special"] = False
    config = {
        "added_tokens_decoder": decoder,
        "bos_token": {"content": "<s>", "__type": "AddedToken"},
        "eos_token": "A",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    folder = small_folder(tmp_path / "a", config)
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": "<pad>", "bos_token": "B"}))
    ours, theirs = Tokenizer.load(folder), AutoTokenizer.from_pretrained(folder)
    assert ours.added_tokens == {"A": 65, "<tool>": 256, "<s>": 257, "<pad>": 258}
    assert ours.special_tokens == {"A": 65, "<s>": 257, "<pad>": 258}
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == (257, 65, 258)
    assert ours.encode("<tool>  <s>A", allow_special=True) == [256, 257, 65]
    assert theirs.encode("<tool>  <s>A", add_special_tokens=False) == [256, 257, 65]
    ours.save(tmp_path / "b")
    again = Tokenizer.load(tmp_path / "b")
    assert again.added == ours.added and again.config == ours.config | {
        "clean_up_tokenization_spaces": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def test_saving_keeps_what_it_does_not_know(tmp_path: Path) -> None:
    folder = small_folder(tmp_path / "a", {"model_max_length": 77, "padding_side": "left"}, truncation=None)
    Tokenizer.load(folder).save(tmp_path / "b")
    saved = json.loads((tmp_path / "b/tokenizer_config.json").read_text())
    assert (saved["model_max_length"], saved["padding_side"]) == (77, "left")
    assert not list((tmp_path / "b").glob(".*")), "a draft was left behind"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[]", "expected a JSON object, found a list"),
        (b"{}", 'no "model"'),
        (b'{"model": {"type": "BPE"}}', 'no "model" with a "vocab"'),
        (b'{"model": {"type": "Magic", "vocab": {"a": 0}}}', "of the kind 'Magic'; supported are BPE"),
        (b'{"model": {"type": "BPE", "vocab": {"a": 0}}}', 'needs a list of "merges"'),
        (b'{"model": {"type": "BPE", "vocab": ["a"], "merges": []}}', "must be a dict"),
        (b'{"model": {"type": "Unigram", "vocab": {"a": 0}}}', "must be a list"),
        (b'{"model": {"type": "BPE", "vocab": {}, "merges": []}}', "at least one token"),
        (b'{"model": {"type": "WordPiece", "vocab": {"a": 0}}, "added_tokens": [{"id": "x"}]}', "needs an integer id"),
        (b'{"model": {"type": "WordPiece", "vocab": {"a": 0}}, "normalizer": {"type": "Magic"}}', "does not take"),
    ],
)
def test_a_file_that_is_no_tokenizer(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(InputError) as caught:
        Tokenizer.load(tmp_path)
    assert said in str(caught.value)
    assert "tokenizer.json" in str(caught.value) or "library" in str(caught.value)


def test_paths_that_hold_none(tmp_path: Path) -> None:
    for path, said in (
        (tmp_path, "no tokenizer here"),
        (tmp_path / "x.json", "no such file"),
        (Path(__file__), "format"),
    ):
        with pytest.raises(InputError, match=said):
            Tokenizer.load(path)


def test_gpt2_files_that_are_broken(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1, "ab": 2}')
    with pytest.raises(InputError, match=r"merges\.txt: missing"):
        Tokenizer.load(tmp_path)
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\na b c\n")
    with pytest.raises(InputError, match=r"merges\.txt, line 3: .*'a b c'"):
        Tokenizer.load(tmp_path)
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    assert Tokenizer.load(tmp_path).encode("abba") == [2, 1, 0]
