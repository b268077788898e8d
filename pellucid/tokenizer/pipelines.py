"""Text without control tokens -> ids: the two ways in which a tokenizer.json is run.

`OurPipeline` is byte-level BPE on our own encoder, for every file whose parts it knows. `LibraryPipeline` hands
the file as it is to the `tokenizers` library: SentencePiece-style BPE, Unigram, WordPiece, and byte-level files with
an unusual part. Both keep promise T1: what they call `encode` cannot yield the id of a special token, because the
vocabulary that it runs on does not hold one.
"""

from __future__ import annotations

import copy
import json
import secrets
import warnings
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import regex

from pellucid.errors import InputError
from pellucid.tokenizer.added import AddedToken, AddedTokens
from pellucid.tokenizer.alphabet import ALPHABET, all_from_alphabet
from pellucid.tokenizer.bpe import BytePairEncoder
from pellucid.tokenizer.patterns import PATTERNS

if TYPE_CHECKING:
    from tokenizers import Tokenizer as LibraryTokenizer

Definition = dict[str, Any]
"""A tokenizer.json, parsed."""


class Pipeline(Protocol):
    """What a `Tokenizer` encodes with. `special` looks for control tokens in the text too."""

    def encode(self, text: str, *, special: bool) -> list[int]: ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]: ...


def pipeline_for(definition: Definition, added: Sequence[AddedToken]) -> Pipeline:
    """Our own pipeline where the file's parts are ones that it knows, else the library's."""
    vocab, splits = byte_vocabulary(definition), split_patterns(definition.get("pre_tokenizer"))
    if vocab is None or splits is None:
        return LibraryPipeline(definition)
    return OurPipeline(definition, added, vocab, splits)


class OurPipeline:
    """Normaliser, added tokens, split patterns and byte-level BPE, in the order of the `tokenizers` library."""

    def __init__(
        self, definition: Definition, added: Sequence[AddedToken], vocab: dict[bytes, int], splits: list[str]
    ) -> None:
        model = definition["model"]
        special = {token.content.encode() for token in added if token.special}
        vocab = {token: number for token, number in vocab.items() if token not in special}
        self.encoder = Encoder(
            vocab, byte_merges(model["merges"], vocab), splits or None, ignore_merges=bool(model.get("ignore_merges"))
        )
        self.normalize = normalizer_of(definition.get("normalizer"))
        self.prefix_space = begins_with_space(definition.get("pre_tokenizer"))
        plain = [token for token in added if not token.special]
        self.raw, self.normalized = (
            {
                special: AddedTokens(
                    (token for token in chosen if token.normalized == normalized),
                    self.normalize if normalized else str,
                )
                for special, chosen in ((False, plain), (True, added))
            }
            for normalized in (False, True)
        )

    def encode(self, text: str, *, special: bool) -> list[int]:
        ids: list[int] = []
        for part in self.raw[special].split(text):
            if isinstance(part, int):
                ids.append(part)
                continue
            for piece in self.normalized[special].split(self.normalize(part)):
                if isinstance(piece, int):
                    ids.append(piece)
                else:
                    ids += self.encoder.encode(
                        f" {piece}" if self.prefix_space and not piece.startswith(" ") else piece
                    )
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(text, special=False) for text in texts]


class Encoder(BytePairEncoder):
    """Our encoder for vocabularies of others, some of which lack bytes (SmolLM2 has no token for 0x04, say).

    Such a byte is left out, as the `tokenizers` library and llama.cpp leave it out; but here it is said.
    """

    @cached_property
    def missing(self) -> bytes:
        return bytes(byte for byte in range(256) if bytes([byte]) not in self.vocab)

    def encode_bytes(self, piece: bytes) -> list[int]:
        kept = piece.translate(None, self.missing)
        if kept != piece:
            lost = ", ".join(f"0x{byte:02X}" for byte in sorted({*piece} - {*kept}))
            warnings.warn(f"the vocabulary has no token for the byte {lost}, which is left out", stacklevel=2)
        return super().encode_bytes(kept)


class LibraryPipeline:
    """The `tokenizers` library on the file as it is, but that it never cuts, pads, or adds control tokens itself.

    Plain text runs on a copy whose control tokens bear random names instead, so that no text can spell one.
    """

    def __init__(self, definition: Definition) -> None:
        self.definition = anchored(definition)
        self.plain = library_tokenizer(without_control(self.definition))

    @cached_property
    def trusting(self) -> LibraryTokenizer:
        return library_tokenizer(self.definition)

    def encode(self, text: str, *, special: bool) -> list[int]:
        chosen = self.trusting if special else self.plain
        return chosen.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [found.ids for found in self.plain.encode_batch_fast(list(texts), add_special_tokens=False)]


def without_control(definition: Definition) -> Definition:
    """The same tokenizer with its control tokens out of reach of any text. The unknown token keeps its duty."""
    definition = dict(definition, post_processor=None)
    model = definition["model"] = dict(definition["model"])
    added = definition.get("added_tokens") or []
    control = {entry["content"] for entry in added if entry.get("special")}
    definition["added_tokens"] = [entry for entry in added if not entry.get("special")]
    secret = secrets.token_hex(16)
    renamed = {content: f"\ue000{secret}{number}" for number, content in enumerate(sorted(control))}
    if model.get("unk_token") in renamed:
        model["unk_token"] = renamed[model["unk_token"]]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {renamed.get(token, token): number for token, number in model["vocab"].items()}
    else:
        model["vocab"] = [[renamed.get(token, token), score] for token, score in model["vocab"]]
    if model.get("merges"):
        pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"])
        model["merges"] = [[left, right] for left, right in pairs if not {left, right, left + right} & control]
    return definition


def anchored(definition: Definition) -> Definition:
    """The same tokenizer with every added token in the model's vocabulary too.

    Otherwise the library numbers added tokens by their order, whatever ids the file gives them.
    """
    vocab = definition["model"]["vocab"]
    added = {entry["id"]: entry["content"] for entry in definition.get("added_tokens") or []}
    if isinstance(vocab, dict):
        missing = {content: number for number, content in added.items() if content not in vocab}
        vocab = {**vocab, **missing}
    else:
        worst = min(score for _, score in vocab)
        beyond = range(len(vocab), 1 + max([*added, -1]))
        vocab = [*vocab, *([added.get(number, f"\ue000{number}"), worst] for number in beyond)]
    return dict(definition, model=dict(definition["model"], vocab=vocab))


def library_tokenizer(definition: Definition) -> LibraryTokenizer:
    """Raises InputError, with the library's reason, for a definition that it does not take."""
    from tokenizers import Tokenizer as LibraryTokenizer

    definition = dict(definition, truncation=None, padding=None, version="1.0")
    try:
        return LibraryTokenizer.from_str(json.dumps(definition))
    except Exception as error:  # noqa: BLE001 (the library raises nothing more exact)
        raise InputError(f"the `tokenizers` library does not take this tokenizer: {error}") from None


def normalizer_of(normalizer: dict[str, Any] | None) -> Callable[[str], str]:
    """The library's normaliser as a function; ASCII needs none where only Unicode forms are asked for."""
    if normalizer is None:
        return str
    shell = {"model": {"type": "BPE", "vocab": {}, "merges": []}, "normalizer": copy.deepcopy(normalizer)}
    run: Callable[[str], str] = library_tokenizer(shell).normalizer.normalize_str
    if normalizer["type"] in ("NFC", "NFD", "NFKC", "NFKD"):
        return lambda text: text if text.isascii() else run(text)
    return run


def byte_vocabulary(definition: Definition) -> dict[bytes, int] | None:
    """The vocabulary as bytes; None if the file is not byte-level BPE, or has a part that our encoder lacks."""
    model, decoder = definition["model"], definition.get("decoder") or {}
    lacking = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    if model.get("type") != "BPE" or decoder.get("type") != "ByteLevel" or any(model.get(part) for part in lacking):
        return None
    tokens = [token for token in model["vocab"] if ALPHABET.issuperset(token)]
    return dict(zip(all_from_alphabet(tokens), map(model["vocab"].__getitem__, tokens), strict=True))


def byte_merges(
    merges: Sequence[str | Sequence[str]] | None, vocab: dict[bytes, int]
) -> list[tuple[bytes, bytes]] | None:
    """The merges as bytes, but for those that would make what `vocab` does not hold."""
    if merges is None:
        return None
    spelt = (pair.split(" ") if isinstance(pair, str) else pair for pair in merges)
    left, right = ([*halves] for halves in zip(*spelt, strict=True)) if merges else ([], [])
    pairs = zip(all_from_alphabet(left), all_from_alphabet(right), strict=True)
    return [pair for pair in pairs if pair[0] + pair[1] in vocab]


def split_patterns(pre_tokenizer: dict[str, Any] | None) -> list[str] | None:
    """The chain of split patterns, in the syntax of `regex`; None for a chain that we do not reproduce exactly."""
    steps = steps_of(pre_tokenizer)
    if not steps or steps[-1].get("type") != "ByteLevel":
        return None
    patterns: list[str] = []
    for place, step in enumerate(steps):
        if step["type"] == "ByteLevel":
            if place < len(steps) - 1 or (place > 0 and step.get("add_prefix_space", True)):
                return None
            patterns += PATTERNS["gpt2"] if step.get("use_regex", True) else ()
        elif step["type"] == "Digits":
            patterns.append(r"\p{N}" if step.get("individual_digits") else r"\p{N}+")
        elif step["type"] == "Split" and isolates(step):
            wanted = step["pattern"]
            literal = f"(?:{regex.escape(wanted.get('String', ''))})"
            patterns.append(translate(wanted["Regex"]) if "Regex" in wanted else literal)
        else:
            return None
    return patterns if all(map(compiles, patterns)) else None


def steps_of(pre_tokenizer: dict[str, Any] | None) -> list[dict[str, Any]]:
    if pre_tokenizer is None:
        return []
    return list(pre_tokenizer["pretokenizers"]) if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]


def isolates(split: dict[str, Any]) -> bool:
    """Whether matches and what lies between them all become pre-tokens. Some files say "drop what does not match"
    with a pattern that matches everything, which is the same."""
    if split.get("behavior") == "Isolated":
        return not split.get("invert")
    whole = {chain[0] for chain in PATTERNS.values() if len(chain) == 1}
    return split.get("behavior") == "Removed" and bool(split.get("invert")) and split["pattern"].get("Regex") in whole


def translate(pattern: str) -> str:
    r"""From Oniguruma's Ruby syntax, in which `^` and `$` are the ends of lines, to that of `regex`."""
    return f"(?m:{pattern})" if regex.search(r"(?<![\[\\])\^|(?<!\\)\$", pattern) else pattern


def compiles(pattern: str) -> bool:
    """Whether `regex` reads the pattern as Oniguruma does: it must compile, without set operations (`&&`)."""
    try:
        regex.compile(pattern)
    except regex.error:
        return False
    return "&&" not in pattern


def begins_with_space(pre_tokenizer: dict[str, Any] | None) -> bool:
    """Whether text gets a space before it (`add_prefix_space`), so that its first word looks like any other."""
    steps = steps_of(pre_tokenizer)
    return len(steps) == 1 and bool(steps[0].get("add_prefix_space", True))
