"""What a checkpoint says of itself, from headers alone: no weight is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pellucid.checkpoints.adapters import AdapterFolder, open_adapter
from pellucid.checkpoints.folder import OWN, open_folder, read_json
from pellucid.checkpoints.gguf_models import check_gguf, generation_config, own_dtype
from pellucid.checkpoints.gguf_read import GGUF
from pellucid.checkpoints.load import base_name, named_stops
from pellucid.checkpoints.source import ADAPTER_WEIGHTS, Source, bytes_on_disk, find_source
from pellucid.models.config import ModelConfig
from pellucid.models.decoder import Decoder
from pellucid.models.families import parameter_shapes
from pellucid.operations.blocks import BYTES
from pellucid.tokenizer.tokenizer import Tokenizer

PARTS = ("embeddings", "attention", "feed-forward", "norms", "head")


@dataclass(frozen=True, slots=True)
class Description:
    """A model without its weights.

    stored: number format -> bytes that it takes in the files. dtype: what `load` makes of it by default.
    parameters: part -> how many. weight_bytes: of the model that `load` makes of it by default. kept_bytes: where
    matrices that lie in few bits stay so, as they do when it is only run. cache_bytes_per_token, cache_bytes: of keys
    and values in `dtype`, for one token and for the whole context of one sequence.
    about: what the checkpoint says of its making. labels: how many scores it gives; None: it writes text.
    """

    source: Source
    config: ModelConfig
    tokenizer: Tokenizer
    generation: dict[str, Any]
    about: dict[str, Any]
    stored: dict[str, int]
    dtype: torch.dtype
    parameters: dict[str, int]
    weight_bytes: int
    kept_bytes: int
    cache_bytes_per_token: int
    cache_bytes: int
    labels: int | None = None
    adapter: AdapterFolder | None = None


def describe(name: str, above: Sequence[Path] = ()) -> Description:
    """What the model called `name` (as for `pellucid.load`) says of itself. Raises `InputError` as loading does.

    above: adapters whose base it is.
    """
    source = find_source(name)
    if source.kind == "adapter":
        return describe_adapter(source, above)
    stored: Counter[str] = Counter()
    labels = None
    if source.kind == "gguf":
        file = GGUF(source.path)
        config, dtype, generation = check_gguf(file), own_dtype(file), generation_config(file)
        for info in file.tensors.values():
            stored[info.format.name] += info.size
        few = [(info.shape, info.size) for info in file.tensors.values() if info.format.name in BYTES]
        about = told_by_gguf(file)
        tokenizer = Tokenizer.from_gguf(file.metadata)
    else:
        folder = open_folder(source.path)
        config, dtype, generation = folder.config, folder.dtype, folder.generation_config
        labels = folder.labels
        for tensor in folder.tensors.values():
            stored[tensor.dtype] += tensor.num_bytes
        few = [(one.shape, one.num_bytes) for one in folder.tensors.values() if one.dtype in BYTES]
        about = dict(folder.hf_config.get(OWN, {}))
        tokenizer = Tokenizer.load(source.path)
    tokenizer.more_stops = named_stops(generation)
    parameters = count_parameters(config)
    parameters["head"] += (labels or 0) * config.hidden_size
    with torch.device("meta"):
        model = Decoder(config).to(dtype)
    wide = sum(parameters.values()) * dtype.itemsize
    return Description(
        source=source,
        config=config,
        tokenizer=tokenizer,
        generation=generation,
        about=about,
        stored=dict(stored),
        dtype=dtype,
        parameters=parameters,
        weight_bytes=wide,
        kept_bytes=wide - sum(torch.Size(shape).numel() * dtype.itemsize - size for shape, size in few),
        cache_bytes_per_token=model.new_cache(1, 1).num_bytes(),
        cache_bytes=model.new_cache(1, config.max_positions).num_bytes(),
        labels=labels,
    )


def describe_adapter(source: Source, above: Sequence[Path]) -> Description:
    """The base that an adapter names, and the adapter beside it. An earlier adapter is merged into the base."""
    found = open_adapter(source.path)
    base = describe(base_name(found, above), (*above, source.path.resolve()))
    earlier = base.parameters.get("adapter", 0)
    beside = base.weight_bytes - 4 * earlier
    # Matrices that were rounded while it was trained, and those into which another is merged, are widened again.
    kept = beside if found.quantize or earlier else base.kept_bytes
    count = sum(torch.Size(shape).numel() for shape in found.shapes.values())
    own = (source.path / "tokenizer.json").is_file()
    told = ("version", "base", "steps", "tokens_seen", "last_loss")
    return replace(
        base,
        source=source,
        tokenizer=Tokenizer.load(source.path) if own else base.tokenizer,
        about={name: found.made[name] for name in told if name in found.made},
        stored={
            **base.stored,
            "adapter": base.stored.get("adapter", 0) + bytes_on_disk(source.path / ADAPTER_WEIGHTS),
        },
        parameters={**base.parameters, "adapter": count},
        weight_bytes=beside + 4 * count,
        kept_bytes=kept + 4 * count,
        adapter=found,
    )


def told_by_gguf(file: GGUF) -> dict[str, Any]:
    """What a GGUF file says of its making: its keys `pellucid.*`."""
    prefix = f"{OWN}."
    return {key.removeprefix(prefix): value for key, value in file.metadata.items() if key.startswith(prefix)}


def base_of(source: Source) -> str:
    """The model that a source was made from, as far back as it says; itself when it says nothing."""
    if source.kind == "adapter":
        found = open_adapter(source.path)
        return str(found.made.get("base", found.base))
    about = (
        told_by_gguf(GGUF(source.path))
        if source.kind == "gguf"
        else read_json(source.path / "config.json").get(OWN, {})
    )
    return str(about.get("base", source.origin))


def count_parameters(config: ModelConfig) -> dict[str, int]:
    """How many parameters each part of a model has; a tied head has none of its own."""
    counts = dict.fromkeys(PARTS, 0)
    for name, shape in parameter_shapes(config).items():
        counts[part_of(name.split("."))] += torch.Size(shape).numel()
    return counts


def part_of(path: Iterable[str]) -> str:
    """The part that a parameter belongs to, by the submodules on its path."""
    path = list(path)
    if any(step.endswith("norm") for step in path):
        return "norms"
    named = {"embedding": "embeddings", "positions": "embeddings", "attention": "attention"}
    named |= {"head": "head", "score": "head"}
    return next((named[step] for step in path if step in named), "feed-forward")
