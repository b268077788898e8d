"""The vocabulary inside a GGUF file: the keys `tokenizer.*` of its metadata. (`checkpoints` reads the file.)"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from pellucid.errors import InputError, did_you_mean
from pellucid.tokenizer.added import AddedToken
from pellucid.tokenizer.formats import sentencepiece
from pellucid.tokenizer.formats.gguf_splits import ADD_BOS, IGNORE_MERGES, SPLITS
from pellucid.tokenizer.formats.sentencepiece import SPACE, Kind, Piece, Spelling, shell
from pellucid.tokenizer.pipelines import Definition
from pellucid.tokenizer.tokenizer import Tokenizer

ROLES = {
    "bos_token_id": "bos_token",
    "eos_token_id": "eos_token",
    "unknown_token_id": "unk_token",
    "padding_token_id": "pad_token",
    "seperator_token_id": "sep_token",  # so spelt in the format
    "cls_token_id": "cls_token",
    "mask_token_id": "mask_token",
}
COMPOSED = ("qwen2",)  # composes characters (NFC) before all else, which the format cannot say
TEMPLATE = "tokenizer.chat_template"


def read(metadata: Mapping[str, Any]) -> Tokenizer:
    """A tokenizer from a file's metadata. Raises InputError for a kind of vocabulary that is not supported, or a key
    that is missing or contradicts the others."""
    kind = need(metadata, "model")
    if kind not in READERS:
        raise InputError(
            f"the file's vocabulary is of the kind {kind!r}{did_you_mean(kind, READERS)}; "
            f"supported are {', '.join(READERS)}"
        )
    pieces = read_pieces(metadata)
    definition = READERS[kind](metadata, pieces)
    config = {
        role: pieces[number].text
        for key, role in ROLES.items()
        if (number := role_id(metadata, key, pieces)) is not None
    }
    make_control(definition, pieces, config.values())
    adds_bos = key_of(metadata, "add_bos_token", kind != "gpt2" or key_of(metadata, "pre", "") in ADD_BOS)
    adds_eos = key_of(metadata, "add_eos_token", kind in ("bert", "t5"))
    first = config.get("cls_token" if kind == "bert" else "bos_token") if adds_bos else None
    last = config.get("sep_token" if kind == "bert" else "eos_token") if adds_eos else None
    definition["post_processor"] = around(first, last, {piece.text: number for number, piece in enumerate(pieces)})
    length = next((metadata[key] for key in metadata if key.endswith(".context_length")), None)
    limits = {} if length is None else {"model_max_length": int(length)}
    return Tokenizer(definition, {**config, **limits}, read_templates(metadata))


def key_of(metadata: Mapping[str, Any], key: str, default: Any) -> Any:
    return metadata.get(f"tokenizer.ggml.{key}", default)


def need(metadata: Mapping[str, Any], key: str) -> Any:
    value = key_of(metadata, key, None)
    if value is None:
        raise InputError(f"the file holds no vocabulary that can be read: tokenizer.ggml.{key} is missing")
    return value


def read_pieces(metadata: Mapping[str, Any]) -> list[Piece]:
    """Every token with its score and kind, checked to be as many, and none twice."""
    tokens: Sequence[str] = need(metadata, "tokens")
    scores = key_of(metadata, "scores", None) or [0.0] * len(tokens)
    kinds = key_of(metadata, "token_type", None) or [Kind.NORMAL] * len(tokens)
    if not len(tokens) == len(scores) == len(kinds) > 0:
        raise InputError(f"the file's vocabulary has {len(tokens)} tokens, {len(scores)} scores and {len(kinds)} types")
    known = {int(kind): kind for kind in Kind}
    wrong = next((kind for kind in kinds if kind not in known), None)
    if wrong is not None:
        raise InputError(f"the file's vocabulary has a token of type {wrong!r}; types run from 1 to 6")
    if len(set(tokens)) < len(tokens):
        raise InputError("the file's vocabulary holds a token twice: its ids cannot be told apart")
    return [Piece(text, score, known[kind]) for text, score, kind in zip(tokens, scores, kinds, strict=True)]


def role_id(metadata: Mapping[str, Any], key: str, pieces: Sequence[Piece]) -> int | None:
    number = key_of(metadata, key, None)
    if number is not None and not 0 <= number < len(pieces):
        raise InputError(f"tokenizer.ggml.{key} is {number}, and the vocabulary has {len(pieces)} tokens")
    return None if number is None else int(number)


def read_byte_level(metadata: Mapping[str, Any], pieces: Sequence[Piece]) -> Definition:
    """`gpt2`: byte-level BPE; how text is split is a name."""
    name = key_of(metadata, "pre", None)
    if name is None:
        warnings.warn(
            "the file does not say how its vocabulary splits text (tokenizer.ggml.pre): llama.cpp's default is used, "
            "and ids may differ from the model's own; a newer conversion of the model says it",
            stacklevel=2,
        )
        name = "default"
    if name not in SPLITS:
        raise InputError(
            f"the file's vocabulary splits text in the way {name!r}{did_you_mean(name, SPLITS)}, which is not supported"
        )
    splits = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in SPLITS[name]
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        **shell(pieces),
        "normalizer": {"type": "NFC"} if name in COMPOSED else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, byte_level]},
        "decoder": byte_level,
        "model": merging(metadata, pieces) | {"ignore_merges": name in IGNORE_MERGES},
    }


def read_gemma4(metadata: Mapping[str, Any], pieces: Sequence[Piece]) -> Definition:
    """`gemma4`: merges over characters, spaces written as "▁", bytes for the rest; lines end a stretch of merging."""
    pattern = {"type": "Split", "pattern": {"Regex": r"\n+"}, "behavior": "Isolated", "invert": False}
    unknown = next((piece.text for piece in pieces if piece.kind == Kind.UNKNOWN), "<unk>")
    return {
        **shell(pieces),
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
        "pre_tokenizer": pattern,
        "decoder": {"type": "Sequence", "decoders": sentencepiece.decoders(Spelling(space_prefix=False))},
        "model": merging(metadata, pieces)
        | {"byte_fallback": True, "fuse_unk": True, "unk_token": unknown, "ignore_merges": True},
    }


def read_scored(metadata: Mapping[str, Any], pieces: Sequence[Piece]) -> Definition:
    """`llama`: SentencePiece BPE; the merges follow from the scores."""
    spelling = Spelling(space_prefix=bool(key_of(metadata, "add_space_prefix", True)), merge_spaces=False)
    definition = sentencepiece.define(pieces, unigram=False, spelling=spelling)
    name = str(metadata.get("general.name", "")).lower()
    if "phi-3" in name or "phi3" in name:  # the format cannot say that these swallow the spaces after them
        for entry in definition["added_tokens"]:
            entry["rstrip"] = entry["content"] not in ("<unk>", "<s>", "<|endoftext|>")
    return definition


def read_unigram(metadata: Mapping[str, Any], pieces: Sequence[Piece]) -> Definition:
    """`t5`: SentencePiece Unigram, with its character map."""
    charsmap = key_of(metadata, "precompiled_charsmap", None)
    spelling = Spelling(
        space_prefix=bool(key_of(metadata, "add_space_prefix", True)),
        merge_spaces=bool(key_of(metadata, "remove_extra_whitespaces", False)),
        charsmap=b"" if charsmap is None else bytes(value & 0xFF for value in charsmap),
    )
    return sentencepiece.define(pieces, unigram=True, spelling=spelling)


def read_word_piece(metadata: Mapping[str, Any], pieces: Sequence[Piece]) -> Definition:
    """`bert`: WordPiece. The file marks what begins a word ("▁"), a tokenizer.json what continues one ("##")."""
    lower = bool(key_of(metadata, "normalizer.lowercase", True))

    def spelt(piece: Piece) -> str:
        if piece.kind != Kind.NORMAL or (piece.text.startswith("[") and piece.text.endswith("]")):
            return piece.text
        return piece.text[1:] if piece.text.startswith(SPACE) else f"##{piece.text}"

    return {
        **shell(pieces),
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": bool(key_of(metadata, "normalizer.strip_accents", lower)),
            "lowercase": lower,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {spelt(piece): number for number, piece in enumerate(pieces)},
        },
    }


READERS = {
    "gpt2": read_byte_level,
    "llama": read_scored,
    "t5": read_unigram,
    "bert": read_word_piece,
    "gemma4": read_gemma4,
}


def merging(metadata: Mapping[str, Any], pieces: Sequence[Piece]) -> dict[str, Any]:
    """A BPE model of the file's merges. A merge is "left right", and its left half may be a space of its own."""
    vocab = {piece.text: number for number, piece in enumerate(pieces)}
    merges = []
    for number, line in enumerate(need(metadata, "merges")):
        border = line.find(" ", 1)
        left, right = line[:border], line[border + 1 :]
        if border < 0 or not right:
            raise InputError(f"merge {number} of the file's vocabulary is {line!r}: expected two tokens and a space")
        if left in vocab and right in vocab and left + right in vocab:
            merges.append((left, right))
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "vocab": vocab,
        "merges": merges,
    }


def make_control(definition: Definition, pieces: Sequence[Piece], contents: Any) -> None:
    """What the file names as a beginning, an end, padding … is control, whatever kind its token is said to have."""
    listed = {entry["content"]: entry for entry in definition["added_tokens"]}
    ids = {piece.text: number for number, piece in enumerate(pieces)}
    for content in contents:
        entry = listed.setdefault(content, AddedToken(ids[content], content).to_json())
        entry["special"] = True
    definition["added_tokens"] = sorted(listed.values(), key=lambda entry: int(entry["id"]))


def around(first: str | None, last: str | None, ids: Mapping[str, int]) -> dict[str, Any] | None:
    """The post-processor that puts these tokens around a text."""
    ends = [content for content in (first, last) if content is not None]
    if not ends:
        return None

    def template(*sequences: str) -> list[dict[str, Any]]:
        parts: list[dict[str, Any]] = []
        for place, name in enumerate(sequences):
            before = [] if first is None or (place > 0 and last is not None) else [first]
            parts += [{"SpecialToken": {"id": content, "type_id": place}} for content in before]
            parts.append({"Sequence": {"id": name, "type_id": place}})
            parts += [{"SpecialToken": {"id": content, "type_id": place}} for content in [last] if content is not None]
        return parts

    return {
        "type": "TemplateProcessing",
        "single": template("A"),
        "pair": template("A", "B"),
        "special_tokens": {name: {"id": name, "ids": [ids[name]], "tokens": [name]} for name in dict.fromkeys(ends)},
    }


def read_templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    """The chat templates: the one in use is "default", others carry a name of their own."""
    named = {key[len(TEMPLATE) + 1 :]: value for key, value in metadata.items() if key.startswith(f"{TEMPLATE}.")}
    return named | ({"default": metadata[TEMPLATE]} if TEMPLATE in metadata else {})
