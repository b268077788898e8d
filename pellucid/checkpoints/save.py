"""Hugging Face folders out: `save`. What is saved is what was in memory, whole or not at all, and says what it is."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from pellucid.checkpoints import compressed
from pellucid.checkpoints.atomic import atomic_folder, check_replaceable
from pellucid.checkpoints.folder import INDEX, OWN, SCORE, WEIGHTS
from pellucid.layers.quantised import Blocks
from pellucid.models.classifier import Classifier
from pellucid.models.decoder import Decoder
from pellucid.models.families import CLASSIFIER, family_of
from pellucid.tokenizer.tokenizer import Tokenizer

SHARD_BYTES = 5 * 10**9
MODEL_FILES = (
    "config.json", "generation_config.json", "*.safetensors", INDEX, "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "tokenizer.model", "vocab.json",
    "merges.txt",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class About:
    """What a checkpoint says of itself, in its config's object "pellucid" (beside the version that wrote it).

    base: the model that it was made from. steps, tokens_seen, last_loss: of the training that made it.
    """

    base: str | None = None
    steps: int | None = None
    tokens_seen: int | None = None
    last_loss: float | None = None

    def as_json(self) -> dict[str, Any]:
        given = {name: getattr(self, name) for name in self.__slots__}
        return {"version": version("pellucid")} | {name: value for name, value in given.items() if value is not None}


def save(
    model: Decoder,
    tokenizer: Tokenizer,
    folder: str | Path,
    *,
    about: About | None = None,
    model_type: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    blocks: Mapping[str, Blocks] | None = None,
) -> None:
    """Writes a complete Hugging Face folder, which transformers opens as it is; an earlier model there is replaced.

    model_type: the family to write as, where several can express the config. What none can express is written with the
    model type "pellucid", for pellucid alone, with a warning. shard_bytes: the largest size of one weight file.
    blocks: matrices, by the names of the model's parameters, that are written in few bits (`compressed.py`) in place of
    the model's own; all of one format.

    Raises `InputError` when `folder` holds something else than a model, `PellucidError` when the disk refuses.
    """
    folder = Path(folder)
    check_replaceable(folder, MODEL_FILES, "config.json", "a model folder")
    with atomic_folder(folder) as temporary:
        write_folder(
            temporary, model, tokenizer, about or About(), model_type=model_type, shard_bytes=shard_bytes, blocks=blocks
        )


def write_folder(
    folder: Path,
    model: Decoder,
    tokenizer: Tokenizer,
    about: About,
    *,
    model_type: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    blocks: Mapping[str, Blocks] | None = None,
) -> None:
    """The files of `save`, written into `folder`, which the caller makes whole: see `atomic_folder`."""
    config, state = model.config, model.weights()
    family = family_of(config, prefer=model_type)
    if family is None:
        kind = f"Decoder{CLASSIFIER}" if isinstance(model, Classifier) else "Decoder"
        hf_config = {"model_type": OWN, "architectures": [kind], "config": config.model_dump(exclude_unset=True)}
        warnings.warn(
            f"no published family can express this config, so the model is written with model_type {OWN!r}: "
            "pellucid opens it, transformers does not",
            stacklevel=2,
        )
    elif isinstance(model, Classifier):
        hf_config = family.write_classifier_config(config, model.labels)
        state = family.to_theirs(config, state) | {SCORE: state[SCORE]}
    else:
        hf_config, state = family.write_config(config), family.to_theirs(config, state)
    if blocks:
        quantization_config, state = compressed.replace(config, family, state, blocks)
        hf_config["quantization_config"] = quantization_config
    ends = _ends(tokenizer)
    hf_config |= {"dtype": str(model.dtype).removeprefix("torch.")}
    # The last token that is no padding is where others look for a classifier's answer, if rows are of unequal length.
    named = ("bos_token_id", "eos_token_id", *(["pad_token_id"] if isinstance(model, Classifier) else []))
    hf_config |= {name: ends[name] for name in named if name in ends}
    hf_config[OWN] = about.as_json()
    write_json(folder / "config.json", hf_config)
    if not isinstance(model, Classifier):
        write_json(folder / "generation_config.json", ends | model.generation_config)
    _write_weights(folder, state, shard_bytes)
    tokenizer.save(folder)


def _ends(tokenizer: Tokenizer) -> dict[str, Any]:
    """The ids at which text begins and generation ends."""
    stops: tuple[int, ...] = tokenizer.stop_ids
    eos = tokenizer.eos_id if len(stops) < 2 else list(stops)
    found = {"bos_token_id": tokenizer.bos_id, "eos_token_id": eos, "pad_token_id": tokenizer.pad_id}
    return {name: value for name, value in found.items() if value is not None}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_weights(folder: Path, state: Mapping[str, Tensor], shard_bytes: int) -> None:
    """One file, or shards of at most `shard_bytes` (a tensor is never cut) and their index."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in state.items():
        if shards[-1] and size + tensor.nbytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    if len(shards) == 1:
        write_tensors(folder / WEIGHTS, shards[0])
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_tensors(folder / file, shard)
        weight_map |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in state.values())
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """One safetensors file. `format: pt` is what transformers looks for. Raises `OSError` when the disk refuses."""
    here = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
    try:
        save_file(here, path, metadata={"format": "pt"})
    except SafetensorError as error:
        system = re.search(r"os error (\d+)", str(error))
        if system is None:
            raise
        raise OSError(int(system[1]), os.strerror(int(system[1])), str(path)) from error
