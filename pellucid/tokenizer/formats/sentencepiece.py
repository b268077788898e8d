"""SentencePiece models (Kudo and Richardson 2018): byte-pair encoding or Unigram on text whose spaces are "▁".

Ids are SentencePiece's, with three exceptions of the `tokenizers` library, which runs them (and transformers): Unigram
adds scores in double precision, so of two ways to cut a text whose scores differ by rounding it may take the other;
the character map takes a base character and its combining marks as one, and may lose a mark; and where every text gets
a space before it, so does the text after a piece that the user defined (as in llama.cpp).

The file is a protocol buffer, read here by a reader of the wire format; the numbers of the fields are those of
`sentencepiece_model.proto`.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pellucid.errors import InputError
from pellucid.tokenizer.added import AddedToken
from pellucid.tokenizer.pipelines import Definition

if TYPE_CHECKING:
    from pellucid.tokenizer.tokenizer import Tokenizer

SPACE = "▁"
UNIGRAM, BPE = 1, 2


class Kind(IntEnum):
    """The kind of a piece; GGUF files use the same numbers."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Piece:
    text: str
    score: float
    kind: Kind


@dataclass(frozen=True)
class Spelling:
    """How a text is changed before its pieces are found."""

    space_prefix: bool = True
    merge_spaces: bool = True
    charsmap: bytes = b""


def load(path: Path) -> Tokenizer:
    """A `.model` file; what a Hugging Face folder keeps beside it (configuration, template) is read too."""
    from pellucid.tokenizer.formats import huggingface
    from pellucid.tokenizer.tokenizer import Tokenizer

    try:
        pieces, trainer, spelling = read_model(path.read_bytes())
    except (IndexError, struct.error, UnicodeDecodeError, ValueError) as error:
        raise InputError(f"{path}: not a SentencePiece model, or a damaged one ({error})") from None
    method = trainer.get(3, UNIGRAM)
    if method not in (UNIGRAM, BPE):
        raise InputError(f"{path}: a SentencePiece model of type {method}; supported are 1 (unigram) and 2 (bpe)")
    if trainer.get(24):
        raise InputError(f"{path}: treat_whitespace_as_suffix is not supported")
    definition = define(pieces, unigram=method == UNIGRAM, spelling=spelling)
    config = huggingface.folder_config(path.parent)
    templates = huggingface.take_templates(config, path.parent)
    # The fields 40 to 43: the ids of these roles, -1 for none.
    for role, field, usual in (("unk_token", 40, 0), ("bos_token", 41, 1), ("eos_token", 42, 2), ("pad_token", 43, -1)):
        number = signed(trainer.get(field, usual))
        if 0 <= number < len(pieces) and pieces[number].kind in (Kind.CONTROL, Kind.UNKNOWN):
            config.setdefault(role, pieces[number].text)
    huggingface.complete(definition, config)
    return Tokenizer(definition, config, templates)


def read_model(data: bytes) -> tuple[list[Piece], dict[int, Any], Spelling]:
    """The pieces, the trainer's fields by number, and the spelling."""
    pieces: list[Piece] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    for number, value in fields(data):
        if number == 1:
            piece = message(value, {1: bytes, 2: bytes, 3: int})
            score = struct.unpack("<f", piece[2])[0] if 2 in piece else 0.0
            pieces.append(Piece(piece.get(1, b"").decode(), score, Kind(piece.get(3, Kind.NORMAL))))
        elif number == 2:
            trainer = message(value, dict.fromkeys((3, 24, 40, 41, 42, 43), int))
        elif number == 3:
            normalizer = message(value, {2: bytes, 3: int, 4: int, 5: int})
    if not pieces:
        raise ValueError("there is no piece in it")
    if not normalizer.get(5, 1):
        raise ValueError("escape_whitespaces is off, which is not supported")
    spelling = Spelling(bool(normalizer.get(3, 1)), bool(normalizer.get(4, 1)), normalizer.get(2, b""))
    return pieces, trainer, spelling


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protocol buffer: (number, an int for a varint, else bytes). Raises ValueError or IndexError."""
    place = 0
    while place < len(data):
        key, place = varint(data, place)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, place = varint(data, place)
            yield number, value
            continue
        if wire == 2:
            length, place = varint(data, place)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {place}")
        if number == 0 or place + length > len(data):
            raise ValueError(f"field {number} at byte {place} runs past the end")
        yield number, data[place : place + length]
        place += length


def message(data: int | bytes, kinds: Mapping[int, type]) -> dict[int, Any]:
    """The fields of a message inside another; those in `kinds` must be of that type, else ValueError."""
    if isinstance(data, int):
        raise ValueError("a number where a message should be")
    found = dict(fields(data))
    wrong = next((number for number, kind in kinds.items() if not isinstance(found.get(number, kind()), kind)), None)
    if wrong is not None:
        raise ValueError(f"field {wrong} is of the wrong type")
    return found


def varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place
        if shift > 63:
            raise ValueError(f"an endless number at byte {place}")


def signed(value: int) -> int:
    """A negative number is written as the two's complement of 64 bits."""
    return value - (1 << 64) if value >> 63 else value


def define(pieces: Sequence[Piece], *, unigram: bool, spelling: Spelling) -> Definition:
    """The tokenizer.json that gives the ids of these pieces."""
    byte_fallback = any(piece.kind == Kind.BYTE for piece in pieces)
    unknown = next((number for number, piece in enumerate(pieces) if piece.kind == Kind.UNKNOWN), None)
    if unigram:
        model: dict[str, Any] = {
            "type": "Unigram",
            "unk_id": unknown,
            "vocab": [[piece.text, piece.score] for piece in pieces],
            "byte_fallback": byte_fallback,
        }
    else:
        vocab = {piece.text: number for number, piece in enumerate(pieces)}
        model = {
            "type": "BPE",
            "dropout": None,
            "unk_token": None if unknown is None else pieces[unknown].text,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": byte_fallback,
            "vocab": vocab,
            "merges": scored_merges(pieces),
        }
    return {
        **shell(pieces, normalized=not spelling.space_prefix),
        "normalizer": {"type": "Sequence", "normalizers": normalizers(spelling)},
        "decoder": {"type": "Sequence", "decoders": decoders(spelling)},
        "model": model,
    }


def shell(pieces: Sequence[Piece], *, normalized: bool = False) -> Definition:
    """What every definition begins with: the added tokens by their kind, and nothing done to the text.

    normalized: the user's own pieces are looked for where spaces are "▁" already. (Not where every stretch of text
    gets a space before it: each piece would get one too.)
    """
    special = {Kind.CONTROL: True, Kind.UNKNOWN: True, Kind.USER_DEFINED: False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            AddedToken(number, piece.text, special[piece.kind], normalized and not special[piece.kind]).to_json()
            for number, piece in enumerate(pieces)
            if piece.kind in special
        ],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
    }


def normalizers(spelling: Spelling) -> list[dict[str, Any]]:
    """What SentencePiece does to a text, in its order: the character map, spaces merged, one before, all as "▁"."""
    steps: list[dict[str, Any]] = []
    if spelling.charsmap:
        size = int.from_bytes(spelling.charsmap[:4], "little")  # of the trie, which the strings follow
        if size % 4 or not 0 < size <= len(spelling.charsmap) - 4:
            raise InputError("the vocabulary's character map (precompiled_charsmap) is damaged")
        charsmap = base64.b64encode(spelling.charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    if spelling.merge_spaces:
        steps += [replace({"Regex": r"\A +"}, ""), replace({"Regex": " {2,}"}, " ")]
    if spelling.space_prefix:
        steps.append({"type": "Prepend", "prepend": SPACE})
    steps.append(replace({"String": " "}, SPACE))
    if spelling.merge_spaces:
        steps.append(replace({"Regex": rf"{SPACE}+\z"}, ""))
    return steps


def replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def decoders(spelling: Spelling) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = [
        replace({"String": SPACE}, " "),
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if spelling.space_prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return steps


def scored_merges(pieces: Sequence[Piece]) -> list[tuple[str, str]]:
    """SentencePiece merges the two neighbours whose concatenation scores highest: every way to put a piece together
    from two others, in the order of the scores."""
    ids = {piece.text: number for number, piece in enumerate(pieces) if piece.kind == Kind.NORMAL}
    merges = []
    for text in sorted(ids, key=lambda text: -pieces[ids[text]].score):
        made = [(text[:cut], text[cut:]) for cut in range(1, len(text)) if text[:cut] in ids and text[cut:] in ids]
        merges += sorted(made, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
    return merges
