"""The optimizers of a run: which parameter is moved how, and a state that a checkpoint can hold by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.errors import PellucidError
from pellucid.training.muon import Muon
from pellucid.training.recipe import OptimRecipe

FUSED = ("cpu", "cuda")  # where torch has AdamW as one kernel: on a CPU 7 ms for 14M parameters, 26 ms without


def make_optimizer(model: nn.Module, optim: OptimRecipe, dtype: torch.dtype = torch.float32) -> Optimizers:
    """The optimizers of the parameters of `model` that want a gradient, as the recipe's section says.

    Weight decay is decoupled (AdamW, Loshchilov & Hutter 2019) and for the matrices that are multiplied with: the
    projections of the blocks and an untied head. Biases and norms have no direction to shrink along. Nor are
    embeddings decayed: a token's row is moved only where the token occurs but would shrink in every step, and the
    smaller it is, the larger are the gradients behind the first norm (Takase et al. 2023). A tied head is the
    embedding.

    With `muon` the matrices of the blocks go to Muon and all else to AdamW, the head too (Jordan et al. 2024).
    dtype: of the run, in which Muon computes its directions.
    """
    matrices, decayed, others = divide(model)
    if optim.optimizer == "adamw":
        matrices, decayed = [], matrices + decayed
    parts: list[torch.optim.Optimizer] = []
    groups = [{"params": decayed, "weight_decay": optim.weight_decay}, {"params": others, "weight_decay": 0.0}]
    if decayed or others:
        parts.append(adamw([group for group in groups if group["params"]], optim))
    if matrices:
        rate = optim.lr if optim.matrix_lr is None else optim.matrix_lr
        parts.append(Muon(matrices, rate, optim.momentum, optim.weight_decay, dtype))
    return Optimizers(model, parts)


def divide(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """The parameters to train: matrices of the blocks; matrices elsewhere; embeddings, norms and biases."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    matrices: list[nn.Parameter] = []
    elsewhere: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.dim() < 2 or id(parameter) in embeddings:
            others.append(parameter)
        else:
            (matrices if "blocks." in name else elsewhere).append(parameter)
    return matrices, elsewhere, others


def adamw(groups: Sequence[dict[str, Any]], optim: OptimRecipe) -> torch.optim.AdamW:
    """torch's AdamW, with its state there from the start instead of from the first step."""
    device = groups[0]["params"][0].device.type
    optimizer = torch.optim.AdamW(groups, optim.lr, optim.betas, optim.eps, fused=device in FUSED)
    for group in groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
    return optimizer


class Optimizers:
    """The optimizers of one model, stepped, saved and loaded together."""

    def __init__(self, model: nn.Module, parts: Sequence[torch.optim.Optimizer]):
        self.parts = parts
        self._names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
        for part in parts:
            for group in part.param_groups:
                group["full_lr"] = group["lr"]

    def step(self, scale: float = 1.0) -> None:
        """Move the parameters by their gradients, each at its learning rate times `scale`."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = group["full_lr"] * scale
            part.step()

    def zero_grad(self) -> None:
        """Forget the gradients, and free their memory."""
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def state_tensors(self) -> dict[str, Tensor]:
        """Everything that the next step depends on beside parameters and gradients, not copied.

        Names are the parameter's and the kind, as `blocks.0.attention.query.weight.exp_avg`; they are the same before
        the first step and after any.
        """
        return {
            f"{self._names[parameter]}.{kind}": tensor
            for part in self.parts
            for parameter, state in part.state.items()
            for kind, tensor in state.items()
        }

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `state_tensors` gave: the next step is then, bit for bit, what it would have been.

        Raises `PellucidError`, having changed nothing, where names, shapes or types are not those of this model.
        """
        own = self.state_tensors()
        for name in own.keys() ^ tensors.keys():
            what = "lacks" if name in own else "holds, beside what this run needs,"
            raise PellucidError(f"the optimizer's state {what} {name!r}: {OTHER_RUN}")
        for name, tensor in tensors.items():
            theirs, ours = (f"{t.dtype} {tuple(t.shape)}".removeprefix("torch.") for t in (tensor, own[name]))
            if theirs != ours:
                raise PellucidError(f"the optimizer's state {name!r} is {theirs} and has to be {ours}: {OTHER_RUN}")
        for name, tensor in tensors.items():
            own[name].copy_(tensor)


OTHER_RUN = "it is of another model or optimizer; resume with the recipe that it was written with"
