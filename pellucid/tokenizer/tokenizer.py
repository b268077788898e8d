"""`Tokenizer`: text <-> ids, whatever format the vocabulary came in.

Inside, every vocabulary is what a Hugging Face folder holds: the content of `tokenizer.json` (`definition`), that of
`tokenizer_config.json` (`config`), and the chat templates. The readers in `formats/` bring the other formats into this
form; saving writes it down.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pellucid.errors import InputError
from pellucid.tokenizer.added import AddedToken
from pellucid.tokenizer.bpe import repair
from pellucid.tokenizer.pieces import Pieces
from pellucid.tokenizer.pipelines import Definition, Pipeline, pipeline_for
from pellucid.tokenizer.stream import StreamDecoder

if TYPE_CHECKING:
    from pellucid.tokenizer.template import ChatTokens

# What published chat models end a turn with. Where such a token is in the vocabulary, as control, it stops generation.
END_OF_TURN = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "<turn|>",
    "<|END_OF_TURN_TOKEN|>",
    "<｜end▁of▁sentence｜>",
    "<|return|>",
    "<|call|>",
)


class Tokenizer:
    """Text <-> ids.

    Control tokens (`special: true` in the file, `CONTROL` in a GGUF) mark the structure of a conversation, so plain
    `encode` never makes one, whatever the text spells (promise T1); `allow_special=True` is for text that you wrote.
    Added tokens that are not special are vocabulary, and are found in any text, as transformers and llama.cpp do.
    The unknown token is the exception: a vocabulary without bytes yields it for what it cannot spell.
    Truncation and padding written in a tokenizer.json are not applied: a prompt is never cut silently.
    """

    def __init__(
        self,
        definition: Definition,
        config: Mapping[str, Any] | None = None,
        templates: Mapping[str, str] | None = None,
    ) -> None:
        """Raises InputError for a definition that is malformed or has a part that we cannot honour."""
        self.definition = definition
        self.config = dict(config or {})
        self.templates = dict(templates or {})
        """name -> Jinja source; the one in use is called "default"."""
        self.more_stops: tuple[int, ...] = ()
        """Stop tokens that the model's generation_config.json names."""
        self.added = [AddedToken.from_json(entry) for entry in definition.get("added_tokens") or []]
        self.pieces = Pieces(contents_of(definition), self.added, definition.get("decoder"))
        self.vocab_size = max(self.pieces.contents) + 1
        self.pipeline: Pipeline = pipeline_for(definition, self.added)

    @property
    def special_tokens(self) -> dict[str, int]:
        """The control tokens: content -> id."""
        return {token.content: token.id for token in self.added if token.special}

    @property
    def added_tokens(self) -> dict[str, int]:
        """All added tokens, control or not: content -> id."""
        return {token.content: token.id for token in self.added}

    @cached_property
    def vocab(self) -> dict[str, int]:
        """Every token as its file spells it -> id."""
        return {content: number for number, content in self.pieces.contents.items()}

    @property
    def bos_id(self) -> int | None:
        return self.named_id("bos_token")

    @property
    def eos_id(self) -> int | None:
        return self.named_id("eos_token")

    @property
    def pad_id(self) -> int | None:
        return self.named_id("pad_token")

    @property
    def unk_id(self) -> int | None:
        return self.named_id("unk_token")

    def named_id(self, role: str) -> int | None:
        """The id of the token that the configuration names for a role such as "bos_token"; None if it names none."""
        named = self.config.get(role)
        content = named.get("content") if isinstance(named, dict) else named
        return None if content is None else self.vocab.get(content)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Where generation stops: the end of text, control tokens that are known to end a turn, and `more_stops`."""
        special = self.special_tokens
        ends = [self.eos_id, *(special.get(content) for content in END_OF_TURN), *self.more_stops]
        return tuple(dict.fromkeys(end for end in ends if end is not None))

    @property
    def adds_bos(self) -> bool:
        """Whether text for this model begins with `bos_id`."""
        if isinstance(self.config.get("add_bos_token"), bool):
            return bool(self.config["add_bos_token"]) and self.bos_id is not None
        return begins_with(self.definition.get("post_processor")) == self.bos_id is not None

    @property
    def chat_template(self) -> str | None:
        return self.templates.get("default")

    def encode(self, text: str, *, allow_special: bool = False, add_bos: bool = False) -> list[int]:
        """The ids of `text`; control tokens only with `allow_special`, and exactly one BOS first with `add_bos`.

        Lone surrogates become U+FFFD. Raises InputError if `add_bos` and there is no BOS.
        """
        ids = self.pipeline.encode(repair(text), special=allow_special)
        if not add_bos:
            return ids
        if self.bos_id is None:
            raise InputError("this tokenizer has no beginning-of-sequence token to add: leave add_bos out")
        return ids if ids[:1] == [self.bos_id] else [self.bos_id, *ids]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text."""
        return self.pipeline.encode_batch([repair(text) for text in texts])

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """The text of `ids`: their bytes joined, with U+FFFD for what is not UTF-8. InputError for an unknown id."""
        if skip_special:
            ids = (token for token in ids if token not in self.pieces.special)
        return self.pieces.join(ids).decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        """The bytes that an id adds to a text that has begun. InputError for an unknown id."""
        return self.pieces[token]

    def stream_decoder(self, *, skip_special: bool = False, begun: bool = False) -> StreamDecoder:
        """Decodes ids as they come; the joined pieces are `decode` of all of them (promise T4).

        begun: they go on with a text, and the pieces are what `decode` adds to it.
        """
        return StreamDecoder(self, skip_special=skip_special, begun=begun)

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        **variables: Any,
    ) -> ChatTokens:
        """Messages -> ids, the mask of assistant tokens, and the text: see `pellucid.tokenizer.template`."""
        from pellucid.tokenizer.template import apply_chat_template

        return apply_chat_template(
            self, messages, tools=tools, add_generation_prompt=add_generation_prompt, **variables
        )

    def save(self, folder: str | Path) -> None:
        """Write `tokenizer.json`, `tokenizer_config.json` and the chat templates, as transformers reads them."""
        from pellucid.tokenizer.formats import huggingface

        huggingface.save(self, Path(folder))

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """From a Hugging Face folder, a tokenizer.json, a SentencePiece model, or a file of tiktoken ranks.

        Raises InputError for a path that holds none of them. A GGUF file is read by `pellucid.load`.
        """
        from pellucid.tokenizer.formats import load

        return load(Path(path))

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """From the metadata of a GGUF file: its `tokenizer.*` keys as plain Python values."""
        from pellucid.tokenizer.formats import gguf

        return gguf.read(metadata)


def contents_of(definition: Definition) -> dict[int, str]:
    """id -> token as the file spells it, of the model's vocabulary and the added tokens."""
    vocab = definition["model"]["vocab"]
    if isinstance(vocab, dict):
        contents = {number: token for token, number in vocab.items()}
    else:
        contents = {number: entry[0] for number, entry in enumerate(vocab)}
    contents.update((entry["id"], entry["content"]) for entry in definition.get("added_tokens") or [])
    if not contents:
        raise InputError("the tokenizer's vocabulary is empty")
    return contents


def begins_with(post_processor: Mapping[str, Any] | None) -> int | None:
    """The id that a post-processor puts before a single text, or None."""
    if post_processor is None:
        return None
    if post_processor["type"] == "Sequence":
        found = (begins_with(step) for step in post_processor["processors"])
        return next((number for number in found if number is not None), None)
    if post_processor["type"] == "TemplateProcessing":
        first = post_processor["single"][0] if post_processor["single"] else {}
        name = first.get("SpecialToken", {}).get("id")
        return post_processor["special_tokens"][name]["ids"][0] if name is not None else None
    if post_processor["type"] in ("BertProcessing", "RobertaProcessing"):
        return int(post_processor["cls"][1])
    return None
