"""Adapters of a model: added, chosen, switched off, merged into the weights and taken out again."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pellucid.errors import InputError, did_you_mean
from pellucid.layers.lora import Adapter, LoRALinear, widened
from pellucid.models.config import ModelConfig
from pellucid.models.decoder import Decoder
from pellucid.models.families import family_of, parameter_shapes
from pellucid.models.quantised import put_layer

ALL = "all-linear"  # every matrix of the blocks
DEFAULT = "default"  # the name of an adapter that is given none


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """A LoRA adapter (Hu et al. 2021), each field as `peft.LoraConfig` means it. InputError: a value that cannot be.

    targets: the layers that get one, by the family's names (`q_proj`, `self_attn.q_proj`,
    `model.layers.3.self_attn.q_proj`) or ours (`query`, `blocks.3.attention.query`); "all-linear": every matrix of the
    blocks. rslora: the scale is alpha / sqrt(rank). dora: a trained magnitude for each row (Liu et al. 2024);
    with dropout, what training computes differs from peft's, which drops before the base's own product too.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] = (ALL,)
    rslora: bool = False
    dora: bool = False

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise InputError(f"adapter: rank = {self.rank}: it must be 1 or more")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise InputError(f"adapter: alpha = {self.alpha}: it must be above 0")
        if not 0 <= self.dropout < 1:
            raise InputError(f"adapter: dropout = {self.dropout}: it must be 0 or more, and below 1")
        if not self.targets:
            raise InputError(f"adapter: targets is empty: name layers, such as q_proj, or {ALL}")


@dataclass(frozen=True, slots=True)
class Site:
    """A matrix that can have an adapter. name: as the family calls the layer. parts: our layers that make it up, which
    then share `down` (GPT-2's query, key and value)."""

    name: str
    parts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Merged:
    """What merging changed, measured on some tokens, and what undoes it.

    largest: the largest difference between a logit of the model with its adapter and the same of the merged one.
    spread: the largest absolute logit. agreement: the share of tokens after which both find the same one likeliest.
    layers: path -> the layer with its adapters.
    """

    largest: float
    spread: float
    agreement: float
    layers: dict[str, LoRALinear]


def sites(config: ModelConfig) -> list[Site]:
    """Every matrix of the blocks. A config that no family can express has our own names."""
    shapes, family = parameter_shapes(config), family_of(config)
    names = family.names(config) if family else {name: (name,) for name in shapes}
    return [
        Site(name.removesuffix(".weight"), tuple(part.removesuffix(".weight") for part in parts))
        for name, parts in names.items()
        if parts[0].startswith("blocks.") and len(shapes[parts[0]]) == 2
    ]


def choose(config: ModelConfig, targets: Sequence[str]) -> list[Site]:
    """The matrices that `targets` name. InputError: one of them names nothing."""
    every = sites(config)
    found: dict[str, Site] = {}
    for target in targets:
        named = [site for site in every if target == ALL or _is(site.name, target)]
        own = [site for site in every if any(_is(part, target) for part in site.parts)]
        fused = next((site for site in own if len(site.parts) > 1), None)
        if fused is not None and not named:
            raise InputError(
                f"adapter: targets: {target!r} is a part of one matrix in this model: name {_last(fused.name)}"
            )
        if not (named or own):
            known = dict.fromkeys([ALL, *(_last(site.name) for site in every)])
            raise InputError(
                f"adapter: targets: there is no layer {target!r} in the blocks of this model"
                f"{did_you_mean(target, known)}; there are {', '.join(known)}"
            )
        found |= {site.name: site for site in named or own}
    return [site for site in every if site.name in found]


def _is(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def add_adapter(model: Decoder, config: AdapterConfig, name: str = DEFAULT, seed: int = 0) -> None:
    """Gives the model an adapter that changes nothing yet, and is the only thing to be trained; it is active.

    A is uniform in +-1 / sqrt(in), from `seed`, and B is zero (peft's choice; the paper draws A from a normal
    distribution). Raises `InputError` for targets that the model does not have, and for a name that is taken.
    """
    check_name(model, name)
    chosen = choose(model.config, config.targets)
    generator = torch.Generator().manual_seed(seed)
    for site in chosen:
        columns = parameter_shapes(model.config)[f"{site.parts[0]}.weight"][1]
        down = torch.empty(config.rank, columns).uniform_(-1, 1, generator=generator) / math.sqrt(columns)
        shared = nn.Parameter(down.to(model.device))
        for part in site.parts:
            layer = wrap(model, part)
            weight = widened(layer.base).float()
            layer.adapters[name] = Adapter(
                shared,
                nn.Parameter(torch.zeros(len(weight), config.rank, device=model.device)),
                config.alpha,
                rslora=config.rslora,
                dropout=config.dropout,
                magnitude=nn.Parameter(weight.norm(dim=1)) if config.dora else None,
            ).train(model.training)
    train_adapter(model, name)


def check_name(model: Decoder, name: str) -> None:
    """`InputError` for a name that an adapter cannot have, or that is taken."""
    if not name or "." in name or hasattr(nn.ModuleDict(), name):
        raise InputError(f"an adapter cannot be called {name!r}: choose another word, without points")
    if name in adapter_names(model):
        raise InputError(f"there is an adapter {name!r} already: remove it first, or choose another name")


def wrap(model: Decoder, path: str) -> LoRALinear:
    """The layer at `path`, made into one that can have adapters."""
    layer = model.get_submodule(path)
    if not isinstance(layer, LoRALinear):
        layer = LoRALinear(layer)
        put_layer(model, path, layer)
    return layer


def adapted(model: Decoder) -> dict[str, LoRALinear]:
    """The layers that have adapters, by their paths."""
    return {path: module for path, module in model.named_modules() if isinstance(module, LoRALinear)}


def adapter_names(model: Decoder) -> tuple[str, ...]:
    """The adapters of a model, in the order in which they came."""
    return tuple(dict.fromkeys(name for layer in adapted(model).values() for name in layer.adapters))


def active_adapter(model: Decoder) -> str | None:
    """The adapter that the model computes with, or None."""
    return next((layer.active for layer in adapted(model).values() if layer.active is not None), None)


def use_adapter(model: Decoder, name: str | None) -> None:
    """From here on the model computes with this adapter, or with none. InputError: it has no such one."""
    if name is not None:
        check_known(model, name)
    for layer in adapted(model).values():
        layer.active = name if name is not None and name in layer.adapters else None


def train_adapter(model: Decoder, name: str) -> None:
    """Makes an adapter active, and the only thing that wants a gradient."""
    use_adapter(model, name)
    model.requires_grad_(False)
    for parameter in adapter_parameters(model, name):
        parameter.requires_grad_(True)


def adapter_parameters(model: Decoder, name: str) -> Iterable[nn.Parameter]:
    """The parameters of an adapter; one that several layers share comes once."""
    layers = [layer.adapter(name) for layer in adapted(model).values() if name in layer.adapters]
    return dict.fromkeys(parameter for layer in layers for parameter in layer.parameters())


@contextmanager
def adapter_off(model: Decoder) -> Iterator[None]:
    """Within it the model is its base: what a policy with an adapter is compared with."""
    layers = adapted(model).values()
    before = [layer.active for layer in layers]
    for layer in layers:
        layer.active = None
    try:
        yield
    finally:
        for layer, active in zip(layers, before, strict=True):
            layer.active = active


@contextmanager
def adapter_on(model: Decoder, name: str | None) -> Iterator[None]:
    """Within it the model computes with this adapter, or with none. InputError: it has no such one."""
    before = active_adapter(model)
    use_adapter(model, name)
    try:
        yield
    finally:
        use_adapter(model, before)


def remove_adapter(model: Decoder, name: str) -> None:
    """Takes an adapter away. Where it was the active one, none is active. InputError: there is no such one."""
    check_known(model, name)
    for path, layer in adapted(model).items():
        if name in layer.adapters:
            del layer.adapters[name]
            layer.active = None if layer.active == name else layer.active
        if not layer.adapters:
            put_layer(model, path, layer.base)


@torch.no_grad()
def merge_adapter(model: Decoder, name: str = DEFAULT, tokens: Tensor | None = None) -> Merged:
    """Makes plain layers that compute what those with this adapter do, and measures how far the logits moved.

    tokens: (B, T), on which that is measured; None: 64 that are drawn at random. The sums are made in float32 and
    rounded to the model's own type, which is where the difference comes from. Other adapters leave the model together
    with the layers; `unmerge_adapter` brings all of it back, bit for bit. InputError: there is no such adapter.
    """
    check_known(model, name)
    if tokens is None:
        size = min(64, model.config.max_positions)
        tokens = torch.randint(model.config.vocab_size, (1, size), generator=torch.Generator().manual_seed(0))
    tokens = tokens.to(model.device)
    use_adapter(model, name)
    training = model.training
    before = model.eval()(tokens).float()
    layers = adapted(model)
    for path, layer in layers.items():
        put_layer(model, path, _plain(layer, name, model.dtype))
    after = model(tokens).float()
    model.train(training)
    return Merged(
        float((after - before).abs().max()),
        float(before.abs().max()),
        float((after.argmax(-1) == before.argmax(-1)).float().mean()),
        layers,
    )


def _plain(layer: LoRALinear, name: str, dtype: torch.dtype) -> nn.Module:
    """The layer without adapters, this one in its weights."""
    if name not in layer.adapters:
        return layer.base
    weight = layer.merged_weight(name).to(dtype)
    with torch.device("meta"):
        plain = nn.Linear(weight.shape[1], weight.shape[0])
    plain.weight = nn.Parameter(weight, requires_grad=False)
    plain.register_parameter("bias", layer.base.bias)
    return plain


def unmerge_adapter(model: Decoder, merged: Merged) -> None:
    """Puts back the layers with their adapters and untouched weights."""
    for path, layer in merged.layers.items():
        put_layer(model, path, layer)


def check_known(model: Decoder, name: str) -> None:
    """`InputError` for a name that no adapter of the model has."""
    names = adapter_names(model)
    if name not in names:
        there = f"there are {', '.join(names)}" if names else "there are none"
        raise InputError(f"the model has no adapter {name!r}{did_you_mean(name, names)}: {there}")
