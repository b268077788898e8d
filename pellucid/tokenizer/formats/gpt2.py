"""GPT-2's own two files: the vocabulary as JSON, and the merges, a line each in order of rank.

They are called `vocab.json` and `merges.txt` in Hugging Face folders, `encoder.json` and `vocab.bpe` where OpenAI
published them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pellucid.errors import InputError
from pellucid.tokenizer.added import AddedToken
from pellucid.tokenizer.formats import huggingface

if TYPE_CHECKING:
    from pellucid.tokenizer.tokenizer import Tokenizer

MERGES = {"vocab.json": "merges.txt", "encoder.json": "vocab.bpe"}
END = "<|endoftext|>"


def load(path: Path) -> Tokenizer:
    """`path` is the vocabulary; the merges, and a configuration if there is one, lie beside it."""
    from pellucid.tokenizer.tokenizer import Tokenizer

    vocab = huggingface.read_json(path)
    merges = read_merges(path.with_name(MERGES[path.name]))
    if not vocab or not all(isinstance(number, int) for number in vocab.values()):
        raise InputError(f"{path}: expected a JSON object of tokens and their ids")
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    definition = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [AddedToken(vocab[END], END, special=True).to_json()] if END in vocab else [],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    }
    config = huggingface.folder_config(path.parent)
    templates = huggingface.take_templates(config, path.parent)
    for role in ("bos_token", "eos_token") if END in vocab else ():
        config.setdefault(role, END)
    huggingface.complete(definition, config)
    return Tokenizer(definition, config, templates)


def read_merges(path: Path) -> list[list[str]]:
    """Raises InputError with the number of the first line that is no merge."""
    if not path.is_file():
        raise InputError(f"{path}: missing; the vocabulary beside it needs these merges")
    merges = []
    for number, line in enumerate(path.read_text("utf-8").split("\n"), 1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        pair = line.split(" ")
        if len(pair) != 2:
            raise InputError(f"{path}, line {number}: expected two tokens and a space, found {line[:60]!r}")
        merges.append(pair)
    return merges
