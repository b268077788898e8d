"""PEFT folders in and out: a LoRA adapter as `peft` writes it, for a base model that lies elsewhere.

adapter_config.json           what the adapter is, and `base_model_name_or_path`
adapter_model.safetensors     base_model.model.<layer>.lora_A.weight (r, in), .lora_B.weight (out, r), and with DoRA
                              .lora_magnitude_vector (out,)
pellucid.json                 what the adapter says of its making; peft does not look at it
tokenizer.json ...            the tokenizer that it was trained with
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pellucid.checkpoints.adapter_config import alpha_of, fields_of, targeted, unsupported
from pellucid.checkpoints.atomic import atomic_folder, check_replaceable
from pellucid.checkpoints.folder import read_json
from pellucid.checkpoints.save import MODEL_FILES, About, write_json, write_tensors
from pellucid.checkpoints.source import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from pellucid.errors import InputError
from pellucid.layers.lora import Adapter, widened
from pellucid.models.adapters import DEFAULT, Site, adapted, check_known, check_name, sites, use_adapter, wrap
from pellucid.models.config import ModelConfig
from pellucid.models.decoder import Decoder
from pellucid.models.families import parameter_shapes
from pellucid.tokenizer.tokenizer import Tokenizer

MADE = "pellucid.json"
DOWN, UP, MAGNITUDE = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector"
PREFIX = "base_model.model."
TENSOR = re.compile(rf"{re.escape(PREFIX)}(.+)\.(lora_A\.weight|lora_B\.weight|lora_magnitude_vector)")

SAMPLED, EACH = 16, 8  # matrices, and weights of each, by which a base is known again
ROUNDING = 2.0**-8  # of a weight in bfloat16, relative
KINDRED = 0.98  # the cosine of the sampled weights of two models, from which on they are taken to be of one origin


@dataclass(frozen=True, slots=True)
class AdapterFolder:
    """An adapter folder, without its numbers. fields: of adapter_config.json. made: of pellucid.json, or nothing.
    shapes: of the tensors, by name."""

    path: Path
    fields: Mapping[str, Any]
    made: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def base(self) -> str:
        """The name of the base model."""
        return str(self.fields.get("base_model_name_or_path") or "")

    @property
    def quantize(self) -> str | None:
        """What the base was rounded to while the adapter was trained: "nf4", or None."""
        return self.made.get("quantize")


def open_adapter(path: str | Path) -> AdapterFolder:
    """Reads and checks everything but the numbers. `InputError` for what is missing, broken or not supported."""
    path = Path(path)
    fields = read_json(path / ADAPTER_CONFIG)
    if wrong := unsupported(fields):
        raise InputError(f"{path / ADAPTER_CONFIG}: {wrong} is not supported, only LoRA in its plain forms")
    made = read_json(path / MADE) if (path / MADE).is_file() else {}
    with _open(path) as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return AdapterFolder(path, fields, made, shapes)


def _open(path: Path) -> Any:
    file = path / ADAPTER_WEIGHTS
    if not file.is_file():
        raise InputError(f"{file}: there is no such file; adapters that are pickles are not read")
    try:
        return safe_open(file, framework="pt")
    except SafetensorError as error:
        raise InputError(f"{file}: this safetensors file is truncated or broken ({error}); fetch it again") from None


def load_adapter(model: Decoder, folder: str | Path, name: str = DEFAULT) -> AdapterFolder:
    """Gives the model the adapter in a PEFT folder, which is active then, and frozen (`train_adapter` thaws it).

    Its numbers are float32, whatever the model's are. Raises `InputError`, having changed nothing, when the model is
    not the adapter's base: a tensor that has no place in it or another shape, a layer that gets none though it is
    named, weights that are quite others than those it was trained beside. Those that are nearly the same (rounded
    otherwise, trained further) are warned of.
    """
    found = open_adapter(folder)
    check_name(model, name)
    placed = _placed(found, model.config)
    _check_weights(found, model)
    with _open(found.path) as file:
        # Copied, since sums over a mapped file, which may begin at any byte, differ in the last bit.
        tensors = {key: file.get_tensor(key).to(model.device, torch.float32, copy=True) for key in found.shapes}
    for site, own in placed.items():
        rows = [parameter_shapes(model.config)[f"{part}.weight"][0] for part in site.parts]
        ups = tensors[own[UP]].split(rows)
        magnitudes = tensors[own[MAGNITUDE]].flatten().split(rows) if MAGNITUDE in own else [None] * len(rows)
        down = nn.Parameter(tensors[own[DOWN]], requires_grad=False)
        for part, up, magnitude in zip(site.parts, ups, magnitudes, strict=True):
            wrap(model, part).adapters[name] = Adapter(
                down,
                nn.Parameter(up.clone(), requires_grad=False),
                alpha_of(found.fields, site.name),
                rslora=bool(found.fields.get("use_rslora")),
                dropout=float(found.fields.get("lora_dropout") or 0.0),
                magnitude=None if magnitude is None else nn.Parameter(magnitude.clone(), requires_grad=False),
            ).train(model.training)
    use_adapter(model, name)
    return found


def _placed(found: AdapterFolder, config: ModelConfig) -> dict[Site, dict[str, str]]:
    """The layers that get something -> what of it -> the name of the tensor. `InputError`: it is for another base."""
    every, shapes = {site.name: site for site in sites(config)}, parameter_shapes(config)
    whose = f"{found.path} was made for {found.base or 'another base'!r}"
    placed: dict[Site, dict[str, str]] = {}
    for name, shape in found.shapes.items():
        match = TENSOR.fullmatch(name)
        if match is None or match[1] not in every:
            raise InputError(f"{whose}: its tensor {name!r} has no place in this model")
        site, kind = every[match[1]], match[2]
        rank = found.shapes.get(f"{PREFIX}{site.name}.{DOWN}", (0,))[0]
        rows = sum(shapes[f"{part}.weight"][0] for part in site.parts)
        columns = shapes[f"{site.parts[0]}.weight"][1]
        expected = {DOWN: (rank, columns), UP: (rows, rank), MAGNITUDE: (rows,)}[kind]
        if shape != expected:
            raise InputError(f"{whose}: its tensor {name!r} is {shape}, and this model asks for {expected}")
        placed.setdefault(site, {})[kind] = name
    if not placed:
        raise InputError(f"{found.path / ADAPTER_WEIGHTS} holds no tensors of an adapter")
    needed = (DOWN, UP, MAGNITUDE) if found.fields.get("use_dora") else (DOWN, UP)
    for site in every.values():
        lacking = [kind for kind in needed if kind not in placed.get(site, {})]
        if lacking and (site in placed or targeted(found.fields, site.name)):
            raise InputError(f"{whose}: it has no {lacking[0]} for the layer {site.name!r} of this model")
    return placed


def sampled_weights(model: Decoder) -> list[float]:
    """Some weights of the base, by which it is known again."""
    names = [site.parts[0] for site in sites(model.config)]
    layers = adapted(model)
    chosen = names[:: max(1, len(names) // SAMPLED)][:SAMPLED]
    rows = [widened(layers[name].base if name in layers else model.get_submodule(name))[0, :EACH] for name in chosen]
    return torch.cat([row.float().cpu() for row in rows]).tolist()


def _check_weights(found: AdapterFolder, model: Decoder) -> None:
    """`InputError` for weights that have nothing to do with those that the adapter was made with."""
    if "weights" not in found.made:
        return
    was, now = torch.tensor(found.made["weights"]), torch.tensor(sampled_weights(model))
    same = len(was) == len(now)
    if same and bool(((was - now).abs() <= ROUNDING * was.abs()).all()):
        return
    if not same or float(torch.cosine_similarity(was, now, dim=0)) < KINDRED:
        raise InputError(
            f"{found.path} was made for {found.base!r}, and the weights of this model are quite others: give that base"
        )
    warnings.warn(
        f"{found.path} was made for {found.base!r}, whose weights differ a little from this model's: one of the two "
        "was rounded or trained further, and the adapter may do less well here",
        stacklevel=3,
    )


def save_adapter(
    model: Decoder,
    folder: str | Path,
    name: str = DEFAULT,
    *,
    base: str | Path,
    tokenizer: Tokenizer | None = None,
    about: About | None = None,
    quantize: str | None = None,
) -> None:
    """Writes one adapter of a model as a PEFT folder, which peft opens; an earlier adapter there is replaced.

    base: the name of the base, as for `pellucid.load`. quantize: what the base is rounded to, if anything ("nf4").
    Raises `InputError` for a name that is not there and when `folder` holds something else than an adapter,
    `PellucidError` when the disk refuses.
    """
    check_known(model, name)
    folder = Path(folder)
    own = (*MODEL_FILES, ADAPTER_CONFIG, MADE, "README.md")
    check_replaceable(folder, own, ADAPTER_CONFIG, "an adapter folder")
    with atomic_folder(folder) as temporary:
        AdapterSaved(model, tokenizer, str(base), quantize, name).write(temporary, about or About())


def _tensors(model: Decoder, name: str) -> dict[str, list[nn.Parameter]]:
    """Each tensor of the file, and the parameters that it is made of, one after the other."""
    layers = adapted(model)
    found: dict[str, list[nn.Parameter]] = {}
    for site in sites(model.config):
        if site.parts[0] in layers and name in layers[site.parts[0]].adapters:
            parts = [layers[part].adapter(name) for part in site.parts]
            prefix = f"{PREFIX}{site.name}."
            found[prefix + DOWN] = [parts[0].down]  # which the parts share
            found[prefix + UP] = [part.up for part in parts]
            if parts[0].magnitude is not None:
                found[prefix + MAGNITUDE] = [part.magnitude for part in parts if part.magnitude is not None]
    return found


@dataclass(frozen=True, slots=True)
class AdapterSaved:
    """What a run with an adapter writes and takes up again: the adapter alone, of a base called `base`.

    The folder is what `save_adapter` writes. Used as `training.saved.Saved`.
    """

    model: Decoder
    tokenizer: Tokenizer | None
    base: str
    quantize: str | None = None
    name: str = DEFAULT

    def write(self, folder: Path, about: About) -> None:
        """Its files, into a folder that the caller makes whole. `OSError` when the disk refuses."""
        layers = adapted(self.model)
        firsts = {site.name: layers[site.parts[0]] for site in sites(self.model.config) if site.parts[0] in layers}
        adapters = {layer: one.adapter(self.name) for layer, one in firsts.items() if self.name in one.adapters}
        write_json(folder / ADAPTER_CONFIG, fields_of(self.model.config, adapters, self.base))
        tensors = _tensors(self.model, self.name)
        write_tensors(
            folder / ADAPTER_WEIGHTS, {key: torch.cat(list(parts)).detach() for key, parts in tensors.items()}
        )
        made = {**about.as_json(), "weights": sampled_weights(self.model)}
        write_json(folder / MADE, made if self.quantize is None else {**made, "quantize": self.quantize})
        if self.tokenizer is not None:
            self.tokenizer.save(folder)

    @torch.no_grad()
    def restore(self, folder: Path) -> None:
        """Puts back in place, bit for bit, what `write` wrote. `InputError`: it is of another shape, or the
        weights beside it are quite others than when it was written (`load_adapter`)."""
        own, found = _tensors(self.model, self.name), open_adapter(folder)
        if {key: torch.cat(list(parts)).shape for key, parts in own.items()} != found.shapes:
            raise InputError(f"{folder} holds another adapter than the recipe's; choose another run folder")
        _check_weights(found, self.model)
        with _open(folder) as file:
            for key, parts in own.items():
                values: Tensor = file.get_tensor(key)
                for part, value in zip(parts, values.split([len(part) for part in parts]), strict=True):
                    part.copy_(value)
