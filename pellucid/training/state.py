"""Checkpoints of a run: a complete model folder, and beside it what training needs to go on as if never interrupted.

step-N/  config.json, model.safetensors, tokenizer.json ...   what `pellucid.load` and transformers open
         state.safetensors                                     the optimizer's tensors, by name
         state.json                                            the step, and what else the loop wants to know again
         manifest.json                                         every file's size and checksum, written last
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file
from torch import Tensor

from pellucid.checkpoints.atomic import atomic_folder
from pellucid.checkpoints.folder import read_folder, read_json
from pellucid.checkpoints.manifest import write_manifest
from pellucid.checkpoints.save import About, write_folder, write_json, write_tensors
from pellucid.errors import InputError
from pellucid.models.decoder import Decoder
from pellucid.tokenizer.tokenizer import Tokenizer

TENSORS, STATE = "state.safetensors", "state.json"


class Stateful(Protocol):
    """What has tensors that a run needs again: the optimizers."""

    def state_tensors(self) -> dict[str, Tensor]: ...

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None: ...


def save_state(
    folder: Path,
    model: Decoder,
    tokenizer: Tokenizer,
    optimizers: Stateful,
    state: Mapping[str, Any],
    about: About,
) -> None:
    """Writes a checkpoint, whole or not at all. `PellucidError` when the disk refuses."""
    with atomic_folder(folder) as temporary:
        write_folder(temporary, model, tokenizer, about)
        write_tensors(temporary / TENSORS, optimizers.state_tensors())
        write_json(temporary / STATE, state)
        write_manifest(temporary)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A whole checkpoint of a run."""

    path: Path
    step: int

    @property
    def state(self) -> dict[str, Any]:
        """What the loop gave to be kept."""
        return read_json(self.path / STATE)

    @property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.load(self.path)

    @torch.no_grad()
    def restore(self, model: Decoder, optimizers: Stateful) -> dict[str, Any]:
        """Puts the weights into `model` and the optimizers' tensors back, bit for bit; returns `state`.

        Raises `InputError` when the checkpoint is of a model of another shape.
        """
        saved, _ = read_folder(self.path, model.dtype)
        if saved.config != model.config:
            raise InputError(
                f"{self.path} holds a model of another config than the recipe's; choose another run folder"
            )
        optimizers.load_state_tensors(load_file(self.path / TENSORS))
        weights = saved.weights()
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
        return self.state
