"""A tokenizer as metadata of GGUF: vocabulary, merges or scores, pre-tokenizer, special tokens, templates (promise M3).

llama.cpp splits text by rules that it knows by name. A tokenizer that splits otherwise would give other ids there, so
it is refused.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any

from pellucid.errors import InputError
from pellucid.tokenizer.formats.gguf_splits import IGNORE_MERGES, SPLITS
from pellucid.tokenizer.formats.tiktoken import spelt_merges
from pellucid.tokenizer.pipelines import begins_with_space, split_patterns, steps_of
from pellucid.tokenizer.tokenizer import Tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")

# Of several names for one way of splitting, the one that models of today bear.
PREFERRED = ("gpt-2", "smollm", "llama-bpe", "dbrx", "qwen2", "gpt-4o", "tekken", "deepseek-v3")


def vocabulary_metadata(tokenizer: Tokenizer, size: int) -> dict[str, Any]:
    """The keys `tokenizer.*` for a model of `size` embeddings; ids without a token are filled with unused ones.

    Raises `InputError` that says what of the tokenizer llama.cpp cannot express.
    """
    if tokenizer.vocab_size > size:
        raise InputError(f"the tokenizer has {tokenizer.vocab_size} ids and the model {size} embeddings")
    model = tokenizer.definition["model"]
    if model.get("type") != "BPE":
        raise InputError(f"llama.cpp gets no {model.get('type')} vocabulary from here; BPE is what can be written")
    tokens = [tokenizer.pieces.contents.get(number, f"[PAD{number}]") for number in range(size)]
    if model.get("byte_fallback"):
        keys = _sentencepiece_keys(tokenizer, model, tokens)
    else:
        keys = _byte_level_keys(tokenizer, model)
    ends = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "unknown": tokenizer.unk_id, "padding": tokenizer.pad_id}
    keys |= {
        "ggml.tokens": tokens,
        "ggml.token_type": [_token_type(tokenizer, number, token) for number, token in enumerate(tokens)],
        "ggml.add_bos_token": tokenizer.adds_bos,
        "ggml.add_eos_token": False,
        **{f"ggml.{role}_token_id": number for role, number in ends.items() if number is not None},
        **_templates(tokenizer.templates),
    }
    return {f"tokenizer.{key}": value for key, value in keys.items()}


def _token_type(tokenizer: Tokenizer, number: int, token: str) -> int:
    if number not in tokenizer.pieces.contents:
        return UNUSED
    if number == tokenizer.unk_id and tokenizer.definition["model"].get("byte_fallback"):
        return UNKNOWN
    if token in tokenizer.added_tokens:
        return CONTROL if token in tokenizer.special_tokens else USER_DEFINED
    if tokenizer.definition["model"].get("byte_fallback") and BYTE_TOKEN.fullmatch(token):
        return BYTE
    return NORMAL


def _byte_level_keys(tokenizer: Tokenizer, model: Mapping[str, Any]) -> dict[str, Any]:
    """Byte-level BPE, which llama.cpp calls gpt2."""
    pre_tokenizer = tokenizer.definition.get("pre_tokenizer")
    splits, ignore_merges = split_patterns(pre_tokenizer), bool(model.get("ignore_merges"))
    names = (name for name in (*PREFERRED, *SPLITS) if (name in IGNORE_MERGES) == ignore_merges)
    pre = next((name for name in names if list(SPLITS[name]) == splits), None)
    if pre is None:
        seen = f"splits text by {' then '.join(splits)!r}" if splits else "has a pre-tokenizer of its own"
        if ignore_merges:
            seen += " and takes a whole pre-token that is a token as it is"
        raise InputError(
            f"the tokenizer {seen}, which llama.cpp does not know; it knows {', '.join(PREFERRED)} and others"
        )
    if begins_with_space(pre_tokenizer):
        raise InputError("the tokenizer puts a space before every text (add_prefix_space), which llama.cpp does not")
    normalizer = tokenizer.definition.get("normalizer")
    if normalizer:
        warnings.warn(
            f"llama.cpp does not apply the tokenizer's normalizer ({normalizer['type']}): text that it would change "
            "gets other ids there",
            stacklevel=4,
        )
    pairs = spelt_merges(model["vocab"]) if model["merges"] is None else model["merges"]  # None: by tiktoken's rule
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in pairs]
    return {"ggml.model": "gpt2", "ggml.pre": pre, "ggml.merges": merges}


def _sentencepiece_keys(tokenizer: Tokenizer, model: Mapping[str, Any], tokens: list[str]) -> dict[str, Any]:
    """SentencePiece's BPE, which llama.cpp calls llama: a piece's score says how early it is merged."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(model["merges"]):
        left, right = pair.split(" ") if isinstance(pair, str) else pair
        ranks.setdefault(left + right, rank)
    return {
        "ggml.model": "llama",
        "ggml.pre": "default",
        "ggml.scores": [-float(ranks[token]) if token in ranks else 0.0 for token in tokens],
        "ggml.add_space_prefix": _adds_space(tokenizer.definition),
    }


def _adds_space(definition: Mapping[str, Any]) -> bool:
    """Whether text gets a space before it: by the normaliser (Llama 2) or by the pre-tokenizer (newer files)."""
    normalizer = definition.get("normalizer") or {}
    steps = normalizer["normalizers"] if normalizer.get("type") == "Sequence" else [normalizer]
    if any(step.get("type") == "Prepend" for step in steps):
        return True
    metaspace = [step for step in steps_of(definition.get("pre_tokenizer")) if step["type"] == "Metaspace"]
    return any(step.get("prepend_scheme", "always") != "never" for step in metaspace)


def _templates(templates: Mapping[str, str]) -> dict[str, Any]:
    """The chat template in use, and others by their names."""
    keys: dict[str, Any] = {"chat_template": templates["default"]} if "default" in templates else {}
    others = {name: text for name, text in templates.items() if name != "default"}
    if others:
        keys["chat_templates"] = list(others)
    return keys | {f"chat_template.{name}": text for name, text in others.items()}
