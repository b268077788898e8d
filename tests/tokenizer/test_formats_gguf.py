"""The vocabulary in a GGUF: every key that may be missing, wrong or contradictory. (Ids: test_vocabularies.py.)"""

from __future__ import annotations

from typing import Any

import pytest

from pellucid.errors import InputError
from pellucid.tokenizer.alphabet import CHARACTER_OF
from pellucid.tokenizer.formats.gguf_splits import SPLITS
from pellucid.tokenizer.tokenizer import Tokenizer
from tests.tokenizer.vocabularies import metadata, tokenizer

LETTERS = list(CHARACTER_OF.values())


def keys(**changed: Any) -> dict[str, Any]:
    """A byte-level vocabulary of one merge and two control tokens; None takes a key away."""
    tokens = [*LETTERS, "hi", "<s>", "<tool>"]
    given = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": tokens,
        "token_type": [1] * 257 + [3, 4],
        "merges": ["h i"],
        "bos_token_id": 257,
        "eos_token_id": 257,
    } | changed
    return {f"tokenizer.ggml.{key}": value for key, value in given.items() if value is not None}


def test_a_small_one() -> None:
    ours = Tokenizer.from_gguf(keys())
    assert ours.encode("hi<s><tool>") == [256, *map(LETTERS.index, "<s>"), 258]
    assert ours.encode("hi<s>", allow_special=True) == [256, 257]
    assert (ours.bos_id, ours.eos_id, ours.pad_id, ours.adds_bos) == (257, 257, None, False)
    assert ours.special_tokens == {"<s>": 257} and ours.added_tokens == {"<s>": 257, "<tool>": 258}


def test_what_is_named_as_an_end_is_control_whatever_its_type() -> None:
    """Older conversions call every token normal."""
    ours = Tokenizer.from_gguf(keys(token_type=None, padding_token_id=258))
    assert ours.special_tokens == {"<s>": 257, "<tool>": 258}
    assert not {257, 258} & set(ours.encode("<s><tool>"))


@pytest.mark.parametrize(
    ("pre", "add_bos", "expected"),
    [("gpt-2", None, False), ("gpt-2", True, True), ("llama-bpe", None, True), ("llama-bpe", False, False)],
)
def test_whether_text_begins_with_bos(pre: str, add_bos: bool | None, expected: bool) -> None:
    assert Tokenizer.from_gguf(keys(pre=pre, add_bos_token=add_bos)).adds_bos is expected


def test_templates_and_context() -> None:
    more = {"tokenizer.chat_template": "a", "tokenizer.chat_template.tool_use": "b", "llama.context_length": 512}
    ours = Tokenizer.from_gguf(keys() | more)
    assert ours.templates == {"default": "a", "tool_use": "b"} and ours.chat_template == "a"
    assert ours.config["model_max_length"] == 512
    assert set(tokenizer("command-r").templates) == {"default", "rag", "tool_use"}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model": None}, r"tokenizer\.ggml\.model is missing"),
        ({"model": "lama"}, "kind 'lama' .did you mean 'llama'"),
        ({"model": "rwkv"}, "supported are gpt2, llama, t5, bert, gemma4"),
        ({"tokens": None}, r"tokenizer\.ggml\.tokens is missing"),
        ({"merges": None}, r"tokenizer\.ggml\.merges is missing"),
        ({"pre": "gpt2"}, "way 'gpt2' .did you mean 'gpt-2'"),
        ({"pre": "kimi-k2"}, "not supported"),
        ({"token_type": [1]}, "259 tokens, 259 scores and 1 types"),
        ({"tokens": [], "token_type": []}, "0 tokens"),
        ({"token_type": [1] * 258 + [9]}, "type 9"),
        ({"tokens": [*LETTERS, "hi", "<s>", "hi"]}, "twice"),
        ({"eos_token_id": 259}, "eos_token_id is 259, and the vocabulary has 259"),
        ({"bos_token_id": -1}, "bos_token_id is -1"),
        ({"merges": ["hi"]}, "merge 0 .* is 'hi'"),
        ({"merges": ["h i", "h "]}, "merge 1"),
    ],
)
def test_keys_that_are_wrong(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Tokenizer.from_gguf(keys(**changed))


@pytest.mark.parametrize("pre", SPLITS)
def test_every_way_to_split_covers_the_text(pre: str) -> None:
    ours = Tokenizer.from_gguf(keys(pre=pre))
    text = "hi  there, it's 12345 o'clock\n\n\t 你好ですか, Größe!? ((x))/\r\n  "
    assert ours.decode(ours.encode(text)) == text


def test_bert_pieces_are_spelt_back() -> None:
    ours = tokenizer("bert-bge")
    assert ours.pieces.contents[metadata("bert-bge")["tokenizer.ggml.tokens"].index("▁hello")] == "hello"
    assert ours.decode(ours.encode("Unbelievably good, is it?")) == "unbelievably good, is it?"
    assert ours.definition["post_processor"]["single"][0]["SpecialToken"]["id"] == "[CLS]"


def test_unigram_from_a_gguf() -> None:
    ours = tokenizer("nomic-bert-moe")
    assert ours.decode(ours.encode("ﬁne  Größe,  １２３ 你好")) == "fine Größe, 123 你好"  # its character map is NFKC
    assert ours.unk_id == 3 and ours.bos_id == 0 and ours.pad_id == 1


@pytest.mark.parametrize("charsmap", [b"xx", b"\xff" * 20, bytes(4)])
def test_a_damaged_character_map(charsmap: bytes) -> None:
    tokens = {"model": "t5", "tokens": ["<unk>", "a"], "token_type": [2, 1], "scores": [0.0, -1.0]}
    signed = [byte - 256 if byte > 127 else byte for byte in charsmap]
    with pytest.raises(InputError, match="character map"):
        Tokenizer.from_gguf(keys(**tokens, precompiled_charsmap=signed, bos_token_id=None, eos_token_id=None))
