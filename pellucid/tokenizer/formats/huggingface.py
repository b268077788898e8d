"""Hugging Face folders: `tokenizer.json`, `tokenizer_config.json`, `chat_template.jinja`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pellucid.errors import InputError
from pellucid.tokenizer.added import AddedToken
from pellucid.tokenizer.pipelines import Definition, anchored

if TYPE_CHECKING:
    from pellucid.tokenizer.tokenizer import Tokenizer

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
KINDS = ("BPE", "Unigram", "WordPiece", "WordLevel")


def load(path: Path) -> Tokenizer:
    """`path` is a tokenizer.json; what lies beside it is read too."""
    from pellucid.tokenizer.tokenizer import Tokenizer

    definition = read_json(path)
    check(definition, path)
    config = folder_config(path.parent)
    templates = take_templates(config, path.parent)
    complete(definition, config)
    return Tokenizer(definition, config, templates)


def check(definition: Definition, path: Path) -> None:
    """Refuse what is no tokenizer.json, naming what is wrong."""
    model = definition.get("model")
    if not isinstance(model, dict) or "vocab" not in model:
        raise InputError(f'{path}: not a tokenizer.json (there is no "model" with a "vocab" in it)')
    model.setdefault("type", guess_kind(model))  # older files leave it out
    if model["type"] not in KINDS:
        raise InputError(f"{path}: a tokenizer of the kind {model['type']!r}; supported are {', '.join(KINDS)}")
    wanted = list if model["type"] == "Unigram" else dict
    if not isinstance(model["vocab"], wanted) or not model["vocab"]:
        raise InputError(f"{path}: the vocabulary must be a {wanted.__name__} with at least one token")
    if model["type"] == "BPE" and not isinstance(model.get("merges"), list):
        raise InputError(f'{path}: byte-pair encoding needs a list of "merges"')
    for entry in definition.get("added_tokens") or []:
        if not isinstance(entry.get("id"), int) or not isinstance(entry.get("content"), str):
            raise InputError(f"{path}: the added token {entry!r} needs an integer id and a content")


def guess_kind(model: dict[str, Any]) -> str:
    if "merges" in model:
        return "BPE"
    return "Unigram" if isinstance(model["vocab"], list) else "WordPiece"


def folder_config(folder: Path) -> dict[str, Any]:
    """`tokenizer_config.json`, with the roles that older folders keep in `special_tokens_map.json`."""
    config: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            config |= read_json(folder / name)
    return config


def take_templates(config: dict[str, Any], folder: Path) -> dict[str, str]:
    """The chat templates by name, taken out of the configuration; files of their own come first."""
    listed = config.pop("chat_template", None) or {}
    if isinstance(listed, list):
        templates = {entry["name"]: entry["template"] for entry in listed}
    else:
        templates = listed if isinstance(listed, dict) else {"default": listed}
    files = {"default": folder / "chat_template.jinja"}
    files |= {file.stem: file for file in sorted(folder.glob("additional_chat_templates/*.jinja"))}
    return templates | {name: file.read_text("utf-8") for name, file in files.items() if file.is_file()}


def complete(definition: Definition, config: dict[str, Any]) -> None:
    """Add the added tokens that only the configuration knows, as transformers does."""
    added = {entry["id"]: entry for entry in definition.get("added_tokens") or []}
    for number, entry in config.pop("added_tokens_decoder", {}).items():
        added[int(number)] = AddedToken.from_json({**entry, "id": int(number)}).to_json()
    known = {entry["content"] for entry in added.values()}
    vocab = definition["model"]["vocab"]
    ids = vocab if isinstance(vocab, dict) else {entry[0]: number for number, entry in enumerate(vocab)}
    for role in ROLES:
        named = config.get(role)
        content = named.get("content") if isinstance(named, dict) else named
        if content is None or content in known:
            continue
        flags = named if isinstance(named, dict) else {}
        number = ids.get(content, 1 + max([*ids.values(), *added]))
        added[number] = AddedToken.from_json({**flags, "id": number, "content": content, "special": True}).to_json()
        known.add(content)
    definition["added_tokens"] = [added[number] for number in sorted(added)]


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the folder's tokenizer files, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    definition = anchored(tokenizer.definition)
    if definition["model"].get("merges", ()) is None:  # tiktoken's rule, which a tokenizer.json spells out
        from pellucid.tokenizer.formats.tiktoken import spelt_merges

        definition["model"]["merges"] = spelt_merges(tokenizer.definition["model"]["vocab"])
    config = {key: value for key, value in tokenizer.config.items() if key != "auto_map"}
    config["tokenizer_class"] = "PreTrainedTokenizerFast"  # tokenizer.json alone decides, no class rebuilds it
    config.setdefault("clean_up_tokenization_spaces", False)
    config["added_tokens_decoder"] = {
        str(token.id): {key: value for key, value in token.to_json().items() if key != "id"}
        for token in tokenizer.added
    }
    write(folder / "tokenizer.json", dump(definition))
    write(folder / "tokenizer_config.json", dump(config))
    for name, template in tokenizer.templates.items():
        if name == "default":
            write(folder / "chat_template.jinja", template)
        else:
            write(folder / "additional_chat_templates" / f"{name}.jinja", template)


def dump(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.part")
    draft.write_bytes(text.encode())
    draft.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """Raises InputError, with the place, for what is not a JSON object."""
    try:
        content = json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a JSON object, found a {type(content).__name__}")
    return content
