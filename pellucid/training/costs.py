"""What training costs: operations a token, bytes that stay taken; and, measured, the most that a process has taken.

L layers, T tokens of a document, H heads, D head dimension, V vocabulary, E hidden size.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pellucid.models.config import ModelConfig
from pellucid.models.decoder import Decoder
from pellucid.models.families.family import parameter_shapes
from pellucid.training.optimizers import make_optimizer
from pellucid.training.recipe import OptimRecipe

LOOKED_UP = ("embedding.weight", "positions.weight")  # rows of these are read, not multiplied


def training_flops(config: ModelConfig, document: float) -> float:
    """Floating-point operations for a token of training, a product and a sum being two.

    document: how many tokens the piece of a document has that the token is in: the context where one document fills
    a row. In packed rows it is less, on average over tokens 2 * mean(positions) + 1.

    Counted is what the result needs, not what a kernel may do beside: keys that no token sees are left out (causality
    halves the attention), and so is what activation checkpointing computes twice. Norms, activations and the softmax
    are left out too: it is the memory that bounds them, not the arithmetic.
    """
    # 6 N + 12 L H D T / 2 (PaLM, Chowdhery et al. 2022, appendix B, with causality): forward, a token is multiplied
    # with each weight, and in each head with D entries of a key and of a value for each key that it sees; backward,
    # twice that, for the gradient of either factor.
    keys = sum(keys_seen(document, config.layer_window(layer)) for layer in range(config.num_layers))
    return 3 * (2 * multiplied_weights(config) + 4 * config.num_heads * config.head_dim * keys)


def multiplied_weights(config: ModelConfig) -> int:
    """The N of 6 N: how many weights every token is multiplied with. A tied head counts, the lookup does not."""
    shapes = parameter_shapes(config)
    matrices = sum(torch.Size(shape).numel() for name, shape in shapes.items() if len(shape) == 2)
    looked_up = sum(torch.Size(shapes[name]).numel() for name in LOOKED_UP if name in shapes)
    return matrices - looked_up + (config.vocab_size * config.hidden_size if config.tie_embeddings else 0)


def keys_seen(document: float, window: int | None = None) -> float:
    """How many keys a token of a document of so many tokens sees, itself among them, on average over its tokens."""
    T = document
    if window is None or window >= T:
        return (T + 1) / 2  # (1 + 2 + ... + T) / T
    return window - window * (window - 1) / (2 * T)  # (1 + ... + w + (T - w) w) / T


def utilisation(flops: float, tokens_per_second: float, ceiling: float) -> float:
    """MFU, model FLOPs utilisation (PaLM, Chowdhery et al. 2022, appendix B): the part of the ceiling that is used.

    flops: for a token. ceiling: GFLOP/s that a plain matrix product reaches in the same precision.
    """
    return flops * tokens_per_second / (1e9 * ceiling)


@dataclass(frozen=True, slots=True)
class StandingMemory:
    """Bytes that stay taken from step to step; activations come on top of them."""

    parameters: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        return self.parameters + self.gradients + self.optimizer


def standing_memory(config: ModelConfig, optim: OptimRecipe) -> StandingMemory:
    """What a model of this config needs with this optimizer, read off both without their memory being taken."""
    with torch.device("meta"):
        model = Decoder(config)
        state = make_optimizer(model, optim).state_tensors()
    weights = num_bytes(model.parameters())
    return StandingMemory(parameters=weights, gradients=weights, optimizer=num_bytes(state.values()))


def num_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def peak_memory(device: torch.device) -> int:
    """The most memory that this process has taken so far, in bytes: on a GPU that of its tensors, else all of it."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # Linux, where getrusage also counts the program that this one was started from
        lines = dict(line.split(":", 1) for line in status.read_text(encoding="ascii", errors="replace").splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
