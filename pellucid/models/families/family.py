"""What a published family is: a reader and writer of its `config.json`, and a table of weight names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from pellucid.errors import InputError
from pellucid.models.config import ModelConfig
from pellucid.models.decoder import Decoder

HFConfig = Mapping[str, Any]  # the content of a config.json

CLASSIFIER = "ForSequenceClassification"  # how the names of architectures with labels end
_LAYER = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass(frozen=True)
class Family:
    """One published family.

    model_type, architecture: as its config.json names them.
    read: config.json -> ModelConfig. write: ModelConfig -> config.json, as far as the family can say it.
    weights: {their name: our name}, `{}` standing for the layer; a tuple of ours: theirs holds them one after the
        other along the output dimension.
    transposed: their names whose matrices are stored (in, out).
    prefix: what their names begin with, which some checkpoints leave out.
    ignored: endings of names that carry no weight (buffers that old checkpoints hold).
    classifier: as `architecture`, with a head that gives labels; where its name does not follow from that one.
    """

    model_type: str
    architecture: str
    read: Callable[[HFConfig], ModelConfig]
    write: Callable[[ModelConfig], dict[str, Any]]
    weights: Mapping[str, str | tuple[str, ...]]
    transposed: frozenset[str] = frozenset()
    prefix: str = ""
    ignored: tuple[str, ...] = ()
    classifier: str = ""

    def read_config(self, config: HFConfig) -> ModelConfig:
        """The ModelConfig that `config` describes. InputError: a key is missing or asks for what is not supported."""
        try:
            return self.read(config)
        except KeyError as error:
            raise InputError(f"config.json of a {self.model_type} model lacks {error.args[0]!r}") from None

    def write_config(self, config: ModelConfig) -> dict[str, Any]:
        """A config.json that transformers opens as this family."""
        return {"model_type": self.model_type, "architectures": [self.architecture], **self.write(config)}

    def write_classifier_config(self, config: ModelConfig, labels: int) -> dict[str, Any]:
        """The same with a head of so many labels."""
        named = self.classifier or re.sub(r"(ForCausalLM|LMHeadModel)$", CLASSIFIER, self.architecture)
        names = {str(label): f"LABEL_{label}" for label in range(labels)}
        return {
            **self.write_config(config),
            "architectures": [named],
            "id2label": names,
            "label2id": {name: int(label) for label, name in names.items()},
        }

    def expresses(self, config: ModelConfig) -> bool:
        """Whether the family's config.json says all that `config` says."""
        try:
            return self.read_config(self.write_config(config)) == config
        except InputError:
            return False

    def ignores(self, config: ModelConfig, name: str) -> bool:
        """Whether the tensor `name` says nothing: an old buffer, or a head that is tied to the embedding."""
        return name.endswith(self.ignored) or (config.tie_embeddings and name == "lm_head.weight")

    def to_ours(self, config: ModelConfig, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """Their tensor under our name or names: views, nothing is copied. InputError: it is not of this family."""
        template, layer = self._template(name)
        shapes = parameter_shapes(config)
        ours = [part.format(layer) for part in self._ours(template)]
        if not ours or any(part not in shapes for part in ours):
            raise InputError(f"the tensor {name!r} has no place in a {self.model_type} model of this config")
        if template in self.transposed:
            tensor = tensor.T
        rows = [shapes[part][0] for part in ours]
        if tuple(tensor.shape) != (sum(rows), *shapes[ours[0]][1:]):
            expected = self.shapes(config)[self.prefixed(name)]
            seen = tuple(tensor.T.shape if template in self.transposed else tensor.shape)
            raise InputError(f"the tensor {name!r} is {seen} and the config asks for {expected}")
        return dict(zip(ours, tensor.split(rows), strict=True))

    def to_theirs(self, config: ModelConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our parameters under their names, as `shapes` lists them. Fused ones are copied, the others are ours."""
        theirs = {}
        for name, template, ours in self._names(config):
            parts = [state[part] for part in ours]
            tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
            theirs[name] = tensor.T if template in self.transposed else tensor
        return theirs

    def names(self, config: ModelConfig) -> dict[str, tuple[str, ...]]:
        """Their name -> our names, of every tensor of a checkpoint of this config."""
        return {name: tuple(ours) for name, _, ours in self._names(config)}

    def shapes(self, config: ModelConfig) -> dict[str, tuple[int, ...]]:
        """The name and shape of every tensor of a checkpoint of this config."""
        shapes = parameter_shapes(config)
        meta = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
        return {name: tuple(tensor.shape) for name, tensor in self.to_theirs(config, meta).items()}

    def prefixed(self, name: str) -> str:
        """`name` as the family's own software writes it."""
        template, layer = self._template(name)
        return template.format(layer)

    def _template(self, name: str) -> tuple[str, str]:
        """A name, with the prefix that it may lack, as (its template, its layer)."""
        found = _LAYER.search("." + name)
        layer = found.group() if found else ""
        template = _LAYER.sub("{}", "." + name, count=1)[1:]
        return (template if template in self.weights else self.prefix + template), layer

    def _ours(self, template: str) -> tuple[str, ...]:
        ours = self.weights.get(template, ())
        return (ours,) if isinstance(ours, str) else ours

    def _names(self, config: ModelConfig) -> Iterable[tuple[str, str, list[str]]]:
        """(their name, its template, our names) of every tensor that a model of this config has."""
        shapes = parameter_shapes(config)
        for template in self.weights:
            for layer in range(config.num_layers if "{}" in template else 1):
                ours = [part.format(layer) for part in self._ours(template)]
                if all(part in shapes for part in ours):
                    yield template.format(layer), template, ours


@lru_cache(maxsize=8)
def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The name and shape of every parameter of a decoder of this config, without making one."""
    with torch.device("meta"):
        return {name: tuple(p.shape) for name, p in Decoder(config).named_parameters()}


def one_of(config: HFConfig, key: str, allowed: Mapping[Any, Any], default: Any) -> Any:
    """What the value of `key` means by the table `allowed`. InputError: a value that is not in it."""
    value = config.get(key, default)
    if value not in allowed:
        raise InputError(f"config.json: {key} = {value!r} is not supported, only {', '.join(map(repr, allowed))}")
    return allowed[value]


def only(config: HFConfig, key: str, value: Any) -> None:
    """InputError if `key` is there and asks for something else than `value`, which is all that is supported."""
    seen = config.get(key)
    if seen is not None and seen != value:
        raise InputError(f"config.json: {key} = {seen!r} is not supported, only {value!r}")
