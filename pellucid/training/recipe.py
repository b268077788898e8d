"""Recipes: one YAML file a run, validated as a whole before anything is loaded.

Any field can be set on the command line as `a.b=value`; a misspelt one is answered with the nearest right one.
"""

from __future__ import annotations

import re
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from pellucid.errors import InputError, did_you_mean

Paths = Annotated[tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)]


def _word(value: Any) -> Any:
    """YAML 1.1 reads the words on and off as true and false."""
    return ("off", "on")[value] if isinstance(value, bool) else value


Switch = Annotated[Literal["auto", "on", "off"], BeforeValidator(_word)]


class Section(BaseModel):
    """A part of a recipe: immutable, and without fields that nobody has heard of."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TokenizerRecipe(Section):
    """A tokenizer to train on the training text, or one that there is."""

    vocab_size: int = Field(4096, ge=259)  # special tokens included
    path: str | None = None  # a model's name or folder, or a tokenizer file: taken as it is


class DataRecipe(Section):
    """What is trained on. Paths: files, folders, or `bundled:` texts; several may be given."""

    train: Paths = Field(min_length=1)
    validation: Paths = ()
    validation_fraction: float = Field(0.01, ge=0, lt=1)  # of the training documents, where `validation` is empty
    context: int = Field(256, ge=2)  # tokens a row
    skip_bad: bool = False  # leave out what cannot be read, counted by reason, instead of stopping


class OptimRecipe(Section):
    """How the weights move."""

    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: for the blocks' matrices; the others go to AdamW
    lr: float = Field(3e-4, gt=0)
    matrix_lr: float | None = Field(None, gt=0)  # Muon's; None: `lr`
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(1e-8, gt=0)
    momentum: float = Field(0.95, ge=0, lt=1)  # Muon's
    weight_decay: float = Field(0.1, ge=0)
    clip: float = Field(1.0, gt=0)  # the largest norm of the gradient
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    warmup: int = Field(100, ge=0)  # steps
    decay: float = Field(0.2, gt=0, le=1)  # wsd: the last part of the steps, in which the rate falls
    final: float = Field(0.1, ge=0, le=1)  # the rate at the end, as a fraction of `lr`


class TrainRecipe(Section):
    """How long, how much at a time, and what is done on the way."""

    steps: int | None = Field(None, gt=0)
    epochs: float | None = Field(None, gt=0)  # instead of `steps`
    batch: int = Field(16, gt=0)  # rows a step, over all processes
    micro_batch: int | None = Field(None, gt=0)  # rows at a time, the gradients added up; None: all of a process's
    activation_checkpointing: bool = False  # compute activations twice instead of keeping them
    evaluate_every: int = Field(100, gt=0)  # steps
    evaluate_rows: int = Field(64, gt=0)  # of the validation text, always the same
    save_every: int = Field(500, gt=0)  # steps
    keep: int = Field(2, gt=0)  # checkpoints
    sample_prompts: tuple[str, ...] = ()  # continued at every evaluation
    sample_tokens: int = Field(40, gt=0)
    explode: float = Field(3.0, gt=0)  # stop when the loss is this much above its running mean (in nats)

    @model_validator(mode="after")
    def _one_length(self) -> TrainRecipe:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs, and null for the other")
        return self


class Band(Section):
    """Where the training loss, the mean of the ten steps up to this one, is expected to be."""

    step: int = Field(gt=0)
    low: float
    high: float

    @model_validator(mode="after")
    def _in_order(self) -> Band:
        if self.low > self.high:
            raise ValueError(f"low = {self.low:g} is above high = {self.high:g}")
        return self


class ExpectRecipe(Section):
    """What the run should give, measured before: the run compares itself with it (promise D8)."""

    loss: tuple[Band, ...] = ()
    time: str | None = None  # how long, on what kind of machine
    sample: str | None = None  # of the quality


class Recipe(Section):
    """What every kind of run has."""

    run: str  # the run folder
    seed: int = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: Switch = "auto"
    data: DataRecipe
    optim: OptimRecipe = OptimRecipe()
    train: TrainRecipe
    expect: ExpectRecipe = ExpectRecipe()


class PretrainRecipe(Recipe):
    """Next-token prediction from nothing. `model`: the fields of `ModelConfig`; vocab_size follows the tokenizer."""

    tokenizer: TokenizerRecipe = TokenizerRecipe()
    model: dict[str, Any]


R = TypeVar("R", bound=Section)


class _Loader(yaml.SafeLoader):
    """YAML in which 3e-4 is a number, as YAML 1.2 has it, and a field that is given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [name.value for name, _ in node.value]
        for number, (name, _) in enumerate(node.value):
            if name.value in names[:number]:
                raise yaml.MarkedYAMLError(problem=f"{name.value!r} is given twice", problem_mark=name.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_recipe(path: str | Path, overrides: Sequence[str], kind: type[R]) -> R:
    """The recipe in the YAML file `path` with `a.b=value` overrides, checked as a whole.

    Raises `InputError` with the field, what was seen and what is allowed.
    """
    path = Path(path)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such recipe") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: the recipe cannot be read ({error})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f":{mark.line + 1}" if mark is not None else ""
        raise InputError(f"{path}{place}: not YAML: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: a recipe is a YAML mapping of fields, such as 'run: runs/first'")
    for override in overrides:
        _override(content, override)
    return parse_recipe(content, kind, str(path))


def parse_recipe(content: dict[str, Any], kind: type[R], what: str) -> R:
    """`content` as a recipe of `kind`; errors name `what` it came from."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise _complaint(error, kind, what) from None


def _override(content: dict[str, Any], override: str) -> None:
    """Sets the field that `a.b=value` names. The value is read as YAML, so 3e-4, true and [a, b] are what they seem."""
    place, equals, text = override.partition("=")
    if not equals or not place:
        raise InputError(f"{override!r} sets nothing: write field=value, such as optim.lr=3e-4")
    *sections, name = place.split(".")
    for section in sections:
        content = content.setdefault(section, {})
        if not isinstance(content, dict):
            raise InputError(f"{override!r}: {section} is no section of the recipe")
    try:
        content[name] = yaml.load(text, _Loader) if text else None
    except yaml.YAMLError:
        content[name] = text


def _complaint(error: ValidationError, kind: type[Section], what: str) -> InputError:
    """One sentence for the first thing that is wrong."""
    errors = error.errors()
    first = next((one for one in errors if one["type"] == "extra_forbidden"), errors[0])  # it may be why one is missing
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        names = _fields(kind, first["loc"][:-1])
        near = _elsewhere(kind, str(first["loc"][-1])) if len(first["loc"]) == 1 else ""
        near = near or did_you_mean(str(first["loc"][-1]), names) or f"; there are {', '.join(names)}"
        return InputError(f"{what}: there is no field {place!r}{near}")
    if first["type"] == "missing":
        return InputError(f"{what}: the field {place!r} is missing")
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":  # our own validators write the sentence
        return InputError(f"{what}: {place}: {message}" if place else f"{what}: {message}")
    if first["type"] in ("model_type", "dict_type"):
        names = _fields(kind, first["loc"]) if first["type"] == "model_type" else ["num_layers"]
        return InputError(
            f"{what}: {place} = {first['input']!r}: this is a section; give its fields, such as {place}.{names[0]}"
        )
    said = (message[0].lower() + message[1:]).replace("tuple", "list")
    return InputError(f"{what}: {place} = {first['input']!r}: {said}")


def _elsewhere(kind: type[BaseModel], name: str) -> str:
    """The suggestion for a field that is given without its section."""
    for section, field in kind.model_fields.items():
        for inner in _classes(field.annotation):
            if issubclass(inner, BaseModel) and name in inner.model_fields:
                return f" (did you mean '{section}.{name}'?)"
    return ""


def _fields(kind: type[BaseModel], place: Sequence[str | int]) -> list[str]:
    """The names of the fields of the section at `place`."""
    for name in place:
        if not isinstance(name, str):
            continue  # an entry of a list
        annotation = kind.model_fields[name].annotation
        kind = next(option for option in _classes(annotation) if issubclass(option, BaseModel))
    return list(kind.model_fields)


def _classes(annotation: Any) -> list[type]:
    """The classes that an annotation such as `X | None` or `tuple[X, ...]` is about."""
    if get_origin(annotation) is None:
        return [annotation] if isinstance(annotation, type) and annotation is not types.NoneType else []
    return [found for argument in get_args(annotation) for found in _classes(argument)]
