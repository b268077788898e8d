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
from pellucid.checkpoints.folder import read_json
from pellucid.checkpoints.manifest import write_manifest
from pellucid.checkpoints.save import About, write_json, write_tensors
from pellucid.tokenizer.tokenizer import Tokenizer
from pellucid.training.saved import Saved

TENSORS, STATE = "state.safetensors", "state.json"


class Stateful(Protocol):
    """What has tensors that a run needs again: the optimizers."""

    def state_tensors(self) -> dict[str, Tensor]: ...

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None: ...


def save_state(folder: Path, saved: Saved, optimizers: Stateful, state: Mapping[str, Any], about: About) -> None:
    """Writes a checkpoint, whole or not at all. `PellucidError` when the disk refuses."""
    with atomic_folder(folder) as temporary:
        saved.write(temporary, about)
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
    def restore(self, saved: Saved, optimizers: Stateful) -> dict[str, Any]:
        """Puts weights and the optimizers' tensors back, bit for bit; returns `state`.

        Raises `InputError` when the checkpoint is of a model of another shape.
        """
        saved.restore(self.path)
        optimizers.load_state_tensors(load_file(self.path / TENSORS))
        return self.state
