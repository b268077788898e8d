"""What a run writes and takes up again: the whole model, or what stands in its place, such as an adapter."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from pellucid.checkpoints.folder import read_folder
from pellucid.checkpoints.save import About, write_folder
from pellucid.errors import InputError
from pellucid.models.decoder import Decoder
from pellucid.tokenizer.tokenizer import Tokenizer


class Saved(Protocol):
    """What is in memory, and how it lies in a folder."""

    def write(self, folder: Path, about: About) -> None:
        """Its files, into a folder that the caller makes whole. `OSError` when the disk refuses."""

    def restore(self, folder: Path) -> None:
        """Puts back in place, bit for bit, what `write` wrote. `InputError`: it is of another shape."""


@dataclass(frozen=True, slots=True)
class WholeModel:
    """Every weight of a model, and its tokenizer: a Hugging Face folder."""

    model: Decoder
    tokenizer: Tokenizer

    def write(self, folder: Path, about: About) -> None:
        write_folder(folder, self.model, self.tokenizer, about)

    @torch.no_grad()
    def restore(self, folder: Path) -> None:
        saved, _ = read_folder(folder, self.model.dtype)
        if saved.config != self.model.config:
            raise InputError(f"{folder} holds a model of another config than the recipe's; choose another run folder")
        weights = saved.weights()
        for name, parameter in self.model.named_parameters():
            parameter.copy_(weights[name])
