"""A decoder's matrices into blocks of small integers, one block of the model after the other.

B rows of calibration text, T tokens a row, E hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TypeAlias

import torch
from torch import Tensor, nn

from pellucid.errors import InputError
from pellucid.inference.quantisation.gptq import Hessian, gptq
from pellucid.inference.quantisation.rounding import Grid, round_matrix
from pellucid.layers.quantised import Blocks
from pellucid.models.decoder import Block, Decoder
from pellucid.models.quantised import is_matrix
from pellucid.operations.blocks import BLOCK, from_blocks

TOGETHER = 8  # rows of calibration text that go through a block at a time

Named: TypeAlias = dict[str, nn.Linear]
Progress: TypeAlias = Callable[[int, int], None]


@torch.no_grad()
def quantise(
    model: Decoder,
    grid: Grid,
    text: Tensor | None = None,
    *,
    embedding: bool = True,
    progress: Progress = lambda _done, _all: None,
) -> dict[str, Blocks]:
    """The blocks of every matrix that can have them, by the name of its parameter; the model's own become their values.

    text: token ids (rows, T) from which GPTQ learns what each layer reads; None: round to nearest. Blocks that come
    first are quantised first, so that later ones learn from what they will read. An embedding (and the head, where it
    is the same matrix) is rounded to nearest. embedding: False leaves it as it is.
    progress: told how many of the matrices are done.

    Raises `InputError` where no matrix has rows that are whole blocks.
    """
    wanted = whole_rows(model, embedding=embedding)
    if not wanted:
        raise InputError(f"no matrix of this model has rows of a multiple of {BLOCK} weights, so none can be quantised")
    found: dict[str, Blocks] = {}

    def keep(name: str, data: Tensor) -> None:
        parameter = model.get_parameter(name)
        parameter.copy_(from_blocks(data, grid.format, parameter.dtype))
        found[name] = Blocks(data, grid.format)
        progress(len(found), len(wanted))

    progress(0, len(wanted))
    if text is not None:
        for name, data in _compensated(model, grid, text, wanted):
            keep(name, data)
    for name in wanted - found.keys():
        keep(name, round_matrix(model.get_parameter(name), grid))
    return {name: found[name] for name in model.state_dict() if name in found}


def whole_rows(model: Decoder, *, embedding: bool) -> set[str]:
    """The names of the matrices that can be quantised, the embedding only if it is to be."""
    return {
        name
        for name, weight in model.named_parameters()
        if is_matrix(name, weight) and weight.shape[1] % BLOCK == 0 and (embedding or name != "embedding.weight")
    }


def _compensated(model: Decoder, grid: Grid, text: Tensor, wanted: set[str]) -> Iterator[tuple[str, Tensor]]:
    """The blocks of the linear layers by GPTQ. Whoever takes one puts its values in the layer's place before the next.

    A block of the model goes over the text twice: as it is, to see what its layers read; quantised, for what the next
    block reads.
    """
    parts = text.split(TOGETHER)  # each (B, T); of one length, so that what surrounds the blocks is the same for all
    entered = [model.enter(part) for part in parts]
    streams, surroundings = [x for x, _ in entered], [around for _, around in entered]
    for layer, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        groups = [
            group for group in _groups(block, f"blocks.{layer}") if any(f"{name}.weight" in wanted for name in group)
        ]
        with _listening(groups) as hessians:
            for x, around in zip(streams, surroundings, strict=True):
                block(x, *around[layer])
        for group, hessian in zip(groups, hessians, strict=True):
            root = hessian.inverse_root()
            for name, linear in group.items():
                yield f"{name}.weight", gptq(linear.weight, root, grid)
        streams = [block(x, *around[layer]) for x, around in zip(streams, surroundings, strict=True)]
    if isinstance(model.head, nn.Linear) and "head.weight" in wanted:
        hessian = Hessian(model.head.in_features, "head")
        for x in streams:
            hessian.add(model.final_norm(x))
        yield "head.weight", gptq(model.head.weight, hessian.inverse_root(), grid)


def _groups(block: Block, prefix: str) -> list[Named]:
    """The linear layers of a block, those together that read the same."""
    attention, feed_forward = block.attention, block.feed_forward
    together: list[dict[str, nn.Module | None]] = [
        {"attention.query": attention.query, "attention.key": attention.key, "attention.value": attention.value},
        {"attention.output": attention.output},
        {"feed_forward.gate": feed_forward.gate, "feed_forward.up": feed_forward.up},
        {"feed_forward.down": feed_forward.down},
    ]
    return [
        {f"{prefix}.{name}": linear for name, linear in group.items() if isinstance(linear, nn.Linear)}
        for group in together
    ]


@contextmanager
def _listening(groups: list[Named]) -> Iterator[list[Hessian]]:
    """The Hessian of what each group reads while the `with` block runs."""
    hessians = []
    with ExitStack() as stack:
        for group in groups:
            name, first = next(iter(group.items()))
            hessian = Hessian(first.in_features, name)
            handle = first.register_forward_pre_hook(lambda _module, given, hessian=hessian: hessian.add(given[0]))
            stack.callback(handle.remove)
            hessians.append(hessian)
        yield hessians
