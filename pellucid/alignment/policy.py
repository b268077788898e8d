"""The model that a method trains, all of it or an adapter beside it, and its reference: itself, not yet trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import Field

from pellucid.alignment.templates import give_template, with_template
from pellucid.checkpoints.adapters import AdapterSaved
from pellucid.checkpoints.assemble import AS_NF4
from pellucid.checkpoints.describe import describe
from pellucid.checkpoints.load import load
from pellucid.checkpoints.source import find_source
from pellucid.errors import InputError
from pellucid.models.adapters import (
    AdapterConfig,
    adapter_names,
    adapter_off,
    add_adapter,
    choose,
    merge_adapter,
)
from pellucid.models.decoder import Decoder
from pellucid.tokenizer.tokenizer import Tokenizer
from pellucid.training.recipe import Paths, Section
from pellucid.training.saved import Saved


class AdapterRecipe(Section):
    """An adapter to train beside the base, whose weights stay: the fields of `AdapterConfig`.

    quantize: nf4 keeps the base's matrices in four bits meanwhile (QLoRA, Dettmers et al. 2023).
    """

    rank: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: Paths = Field(("all-linear",), min_length=1)
    rslora: bool = False
    dora: bool = False
    quantize: Literal["nf4"] | None = None

    @property
    def config(self) -> AdapterConfig:
        return AdapterConfig(**self.model_dump(exclude={"quantize"}))


def check_adapter(base: str, adapter: AdapterRecipe | None) -> None:
    """`InputError`, before anything large is read, for an adapter that this base cannot have."""
    if adapter is None:
        return
    described = describe(base)
    choose(described.config, adapter.targets)
    if with_template(described.tokenizer).vocab_size > described.tokenizer.vocab_size:
        raise InputError(
            f"{base} has no chat template, and an adapter holds no embeddings for the control tokens of one: take a "
            "base that has a template, or train all of this one first (leave out adapter)"
        )
    if adapter.quantize and described.source.kind == "adapter":
        raise InputError(
            f"{base} is itself an adapter, which cannot be merged into a base in {adapter.quantize}: write the merged "
            f"model first (pellucid convert {base} FOLDER), and give that as the base"
        )


def open_before(base: str, adapter: AdapterRecipe | None) -> Decoder:
    """What a run with this adapter starts from, to be compared with what it comes to: where the adapter is trained
    beside rounded matrices, the base as it is with these, so that rounding is not taken for learning."""
    check_adapter(base, adapter)
    rounded = AS_NF4 if adapter is not None and adapter.quantize else None
    return _merged(*load(base, dtype="float32", quantize=rounded))[0].requires_grad_(True)


def _merged(model: Decoder, tokenizer: Tokenizer) -> tuple[Decoder, Tokenizer]:
    """Its adapter, where it has one, in its weights; with a chat template."""
    for name in adapter_names(model):
        merge_adapter(model, name)
    return model, give_template(model, tokenizer)


def open_policy(base: str, adapter: AdapterRecipe | None = None, *, seed: int = 0) -> tuple[Decoder, Tokenizer]:
    """The model before its first step, in float32, with a chat template; the same however often it is called.

    base: as for `pellucid.load`; where that is an adapter, it is merged. What is to be trained wants a gradient: every
    weight, or the adapter alone, which is called "default" and begins from `seed`. Errors as `check_adapter`.
    """
    check_adapter(base, adapter)
    model, tokenizer = _merged(*load(base, dtype="float32", quantize=adapter.quantize if adapter else None))
    if adapter is None:
        model.requires_grad_(True)
    else:
        add_adapter(model, adapter.config, seed=seed)
    return model, tokenizer


def saved_adapter(model: Decoder, tokenizer: Tokenizer, base: str, adapter: AdapterRecipe | None) -> Saved | None:
    """What a run of this policy writes (`Trainer.saved`): the adapter; None, for the whole model, where there is none.

    A base that is a path is written down as an absolute one: the folder opens from anywhere.
    """
    if adapter is None:
        return None
    path = Path(base).expanduser()
    return AdapterSaved(model, tokenizer, str(path.resolve()) if path.exists() else base, adapter.quantize)


def described_policy(base: str, model: Decoder, adapter: AdapterRecipe | None) -> str:
    """A line on what is trained, for people."""
    every = sum(parameter.numel() for parameter in model.parameters())
    if find_source(base).kind == "adapter":
        base = f"{base} (itself an adapter, merged into its base in float32)"
    if adapter is None:
        return f"base {base}, {every:,} parameters, all of them trained"
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    kind = "DoRA" if adapter.dora else "LoRA"
    where = "" if adapter.quantize is None else f", its matrices in {adapter.quantize.upper()}"
    return f"base {base}{where}, with {kind} of rank {adapter.rank}: {trained:,} parameters are trained"


class Reference:
    """What a policy was before its first step. Used as `with reference() as model:`.

    With an adapter that is the policy's own base, the adapter off: no second model. Else it is a copy in float32 that
    stays as it is, read from `base` anew, so that a resumed run has the same one.
    """

    def __init__(self, policy: Decoder, base: str):
        self.policy = policy
        self.frozen: Decoder | None = None
        if not adapter_names(policy):
            self.frozen = open_policy(base)[0].to(policy.device).requires_grad_(False).eval()

    @contextmanager
    def __call__(self) -> Iterator[Decoder]:
        """The reference as a model, within the block."""
        if self.frozen is not None:
            yield self.frozen
            return
        with adapter_off(self.policy):
            yield self.policy
