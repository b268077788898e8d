"""The formats in which vocabularies come, one file each; every reader makes a `Tokenizer`."""

from __future__ import annotations

from pathlib import Path

from pellucid.errors import InputError
from pellucid.tokenizer.formats import gpt2, huggingface, sentencepiece, tiktoken
from pellucid.tokenizer.tokenizer import Tokenizer

FOLDER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", *gpt2.MERGES)


def load(path: Path) -> Tokenizer:
    """Whatever `path` holds: a folder (a tokenizer.json before anything else), or a file known by its ending."""
    if path.is_dir():
        found = next((path / name for name in FOLDER_FILES if (path / name).is_file()), None)
        if found is None:
            raise InputError(f"{path}: no tokenizer here; a folder needs one of {', '.join(FOLDER_FILES)}")
        return load(found)
    if not path.is_file():
        raise InputError(f"{path}: there is no such file or folder")
    if path.name in gpt2.MERGES:
        return gpt2.load(path)
    if path.suffix == ".json":
        return huggingface.load(path)
    if path.suffix == ".tiktoken":
        return tiktoken.load(path)
    if path.suffix == ".model":
        first = path.open("rb").readline()
        return tiktoken.load(path) if tiktoken.LINE.fullmatch(first) else sentencepiece.load(path)
    raise InputError(f"{path}: no tokenizer format that is known; use a folder, *.json, *.model or *.tiktoken")
