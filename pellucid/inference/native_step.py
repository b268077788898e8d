"""A decoder as a list of native operations, and a step through it.

R rows, one token each; E hidden size, H query heads, K key-value heads, D head dimension, F intermediate size, V
vocabulary. The list reads like `Block.forward`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.inference.native_matrices import Matrix, base_of, change_of, factors_of, fused, type_of, wide
from pellucid.inference.step import Chunk
from pellucid.layers.nf4 import NF4Linear
from pellucid.layers.norm import LayerNorm, RMSNorm
from pellucid.layers.paged import PagedCache
from pellucid.layers.positions import Rope, alibi_slopes, frequencies
from pellucid.models.adapters import adapter_names
from pellucid.models.decoder import Block, Decoder
from pellucid.operations.gated import ACTIVATIONS
from pellucid.operations.step import (
    ACTIVATION_NUMBERS,
    CACHE_TYPES,
    FEW,
    LANES,
    Kind,
    Program,
    Rows,
    span,
    why_not,
)

ROWS = 512  # that go through the model at once


def why_not_native(model: Decoder) -> str | None:
    """Why the native step cannot run this model, in a few words; None where it can."""
    c = model.config
    if model.device.type != "cpu":
        return f"it is on {model.device.type}"
    if c.position == "sinusoidal" or "dynamic" in {c.rope.scaling, c.local_rope and c.local_rope.scaling}:
        return "its positions are sinusoidal, or stretch with the text"
    if (reason := why_not(model.dtype)) is not None:
        return reason
    if model.dtype == torch.bfloat16 and c.head_dim % 2:
        return f"its heads have an odd size, {c.head_dim}"
    if any(isinstance(module, NF4Linear) for module in model.modules()):
        return "its weights are NF4"
    return None


class NativeStep:
    """`model` over `cache`, for steps of any size: `ROWS` rows go through the model at a time.

    Query, key and value become one matrix where they are of one type, and the model's own parameters are parts of it;
    so do gate and up. Each of the model's adapters is a list of operations of its own over the same matrices: what
    it adds to a layer is two small products beside the layer's.
    """

    def __init__(self, model: Decoder, cache: PagedCache, max_length: int):
        assert cache.block_size % LANES == 0
        c, self.cache = model.config, cache
        self.model, self.config = model, c
        self.spans = math.ceil(max_length / span())
        R, E, D = ROWS, c.hidden_size, c.head_dim
        self.tokens, self.positions, self.sequences, self.wanted = (torch.zeros(R, dtype=torch.int64) for _ in range(4))
        self.tables = torch.zeros(R, math.ceil(max_length / cache.block_size), dtype=torch.int64)
        gated = ACTIVATIONS[c.activation][1]
        self.x, self.h = torch.empty(R, E), torch.empty(R, E)
        self.heads = torch.empty(R, (c.num_heads + 2 * c.num_kv_heads) * D)
        self.mixed = torch.empty(R, c.num_heads * D)
        self.wide = torch.empty(R, c.intermediate_size * (2 if gated else 1))
        self.logits = torch.empty(FEW, c.vocab_size)
        self.parts = torch.empty(FEW * c.num_heads * self.spans * (D + 2))
        self.slopes = alibi_slopes(c.num_heads) if c.position == "alibi" else None
        self.angles: dict[Rope, Tensor] = {}
        self._matrices: dict[tuple[nn.Module, ...], Matrix] = {}  # layers side by side, as all programs read them
        self._narrows: dict[int, Tensor] = {}  # by the rank of an adapter
        self.programs = {name: self._program(name) for name in (None, *adapter_names(model))}

    def __call__(self, chunks: Sequence[Chunk]) -> Tensor:
        """The logits after the last `wanted` tokens of each chunk, (sum of wanted, V), float32, valid until the next
        call."""
        wanted = sum(chunk.wanted for chunk in chunks)
        if wanted > len(self.logits):
            self.logits = torch.empty(wanted, self.config.vocab_size)
        done = 0
        for adapter, own in groupby(chunks, lambda chunk: chunk.adapter):
            for part in in_parts(list(own), ROWS):
                self._run(self.programs[adapter], part, self.logits[done:])
                done += sum(chunk.wanted for chunk in part)
        return self.logits[:wanted]

    def _run(self, program: Program, chunks: Sequence[Chunk], logits: Tensor) -> None:
        row = num_wanted = 0
        for number, chunk in enumerate(chunks):
            stop = row + len(chunk.tokens)
            self.tokens[row:stop] = torch.tensor(chunk.tokens)
            torch.arange(chunk.start, chunk.start + len(chunk.tokens), out=self.positions[row:stop])
            self.sequences[row:stop] = number
            table = chunk.table[: math.ceil((chunk.start + len(chunk.tokens)) / self.cache.block_size)]
            self.tables[number, : len(table)] = torch.tensor(table)
            torch.arange(stop - chunk.wanted, stop, out=self.wanted[num_wanted : num_wanted + chunk.wanted])
            row, num_wanted = stop, num_wanted + chunk.wanted
        pointers = (self.tokens, self.positions, self.sequences, self.tables, self.wanted, logits)
        program.run(Rows(*(one.data_ptr() for one in pointers), row, self.tables.shape[1], num_wanted))

    def _program(self, adapter: str | None) -> Program:
        """The operations of the model with an adapter, or without any."""
        self.program, self.adapter = Program(), adapter
        self.angles.clear()
        self._write()
        return self.program

    def _write(self) -> None:
        c, model, add = self.config, self.model, self.program.add
        table = Matrix.of(model.embedding)
        add(Kind.EMBED, type=table.type, weight=table.weight, to=self.x, outputs=table.inputs,
            scale=c.embedding_scale or 1.0)  # fmt: skip
        if model.positions is not None:
            learned = Matrix.of(model.positions)
            add(Kind.EMBED, type=learned.type, weight=learned.weight, to=self.x, outputs=learned.inputs, add=1)
        for layer, block in enumerate(model.blocks):
            assert isinstance(block, Block)
            self._block(block, layer)
        if isinstance(model.final_norm, RMSNorm | LayerNorm):
            self._norm(model.final_norm, self.x, self.x)
        add(Kind.TAKE, source=self.x, to=self.h, inputs=c.hidden_size)
        head = table if model.head is None else Matrix.of(model.head)
        self._linear(head, self.h, None, few=1, cap=c.logit_softcap or 0.0)

    def _block(self, block: Block, layer: int) -> None:
        place = block.norm_position
        if place == "pre":  # x + f(norm(x))
            self._norm(block.attention_norm, self.x, self.h)
            self._attention(block, layer, self.h, self.x, add=1)
            self._norm(block.feed_forward_norm, self.x, self.h)
            self._feed_forward(block, self.h, self.x, add=1)
        elif place == "post":  # norm(x + f(x))
            self._attention(block, layer, self.x, self.x, add=1)
            self._norm(block.attention_norm, self.x, self.x)
            self._feed_forward(block, self.x, self.x, add=1)
            self._norm(block.feed_forward_norm, self.x, self.x)
        else:  # x + norm(f(norm(x)))
            self._norm(block.attention_norm, self.x, self.h)
            self._attention(block, layer, self.h, self.h, add=0)
            self._norm(block.attention_post_norm, self.h, self.x, add=1)
            self._norm(block.feed_forward_norm, self.x, self.h)
            self._feed_forward(block, self.h, self.h, add=0)
            self._norm(block.feed_forward_post_norm, self.h, self.x, add=1)

    def _attention(self, block: Block, layer: int, x: Tensor, to: Tensor, add: int) -> None:
        c, cache, attention = self.config, self.cache, block.attention
        H, K, D = c.num_heads, c.num_kv_heads, c.head_dim
        shape: dict[str, Any] = {
            "heads": H,
            "kv_heads": K,
            "dim": D,
            "block": cache.block_size,
            "type": CACHE_TYPES[cache.keys.dtype],
        }
        shape |= {"keys": cache.keys[layer], "values": cache.values[layer]}
        if cache.scales is not None:
            shape |= {"key_scales": cache.scales[0, layer], "value_scales": cache.scales[1, layer]}
        self._layers([attention.query, attention.key, attention.value], x, self.heads)
        if attention.query_norm is not None and attention.key_norm is not None:
            self._norm(attention.query_norm, self.heads, self.heads, heads=H)
            self._norm(attention.key_norm, self.heads[:, H * D :], self.heads[:, H * D :], heads=K)
        angles = self._angles(c.layer_rope(layer)) if c.position == "rotary" else None
        self.program.add(Kind.STORE, to=self.heads, angles=angles, **shape)
        self.program.add(
            Kind.ATTEND, source=self.heads, to=self.mixed, scale=attention.scale, cap=attention.softcap or 0.0,
            window=c.layer_window(layer) or 0, slopes=self.slopes, parts=self.parts, spans=self.spans, **shape,
        )  # fmt: skip
        self._layers([attention.output], self.mixed, to, add=add)

    def _feed_forward(self, block: Block, x: Tensor, to: Tensor, add: int) -> None:
        layer, gated = block.feed_forward, ACTIVATIONS[self.config.activation][1]
        self._layers([layer.up] if layer.gate is None else [layer.gate, layer.up], x, self.wide)
        number = ACTIVATION_NUMBERS[self.config.activation]
        self._layers([layer.down], self.wide, to, add=add, activation=number, gated=int(gated))

    def _layers(self, modules: Sequence[nn.Module], x: Tensor, to: Tensor, **fields: int) -> None:
        """Layers that read the same input: one matrix where their weights are of one type."""
        if len({type_of(base_of(module)) for module in modules}) == 1:
            self._together(modules, x, to, **fields)
            return
        for module in modules:
            to = to[:, self._together([module], x, to, **fields) :]

    def _together(self, modules: Sequence[nn.Module], x: Tensor, to: Tensor, *, add: int = 0, **reads: int) -> int:
        """One product, and two small ones for each layer that has the adapter. Returns how many outputs they have.

        reads: how the input is read, `activation` and `gated`."""
        bases = tuple(base_of(module) for module in modules)
        changes = [change_of(module, self.adapter) for module in modules]
        if bases not in self._matrices:
            self._matrices[bases] = fused(bases) if len(bases) > 1 else Matrix.of(bases[0])
        outputs, stride, start = [base.out_features for base in bases], to.stride(0), 0
        matrix = self._matrices[bases]._replace(factors=factors_of(changes, outputs))
        self._linear(matrix, x, to, stride=stride, add=add, **reads)
        for change, count in zip(changes, outputs, strict=True):
            if change is not None:  # y += c s B (A x)
                narrow = self._narrow(len(change.down.weight))
                self._linear(change.down, x, narrow, **reads)
                self._linear(change.up, narrow, to[:, start:], stride=stride, add=1)
            start += count
        return start

    def _linear(self, matrix: Matrix, x: Tensor, to: Tensor | None, **fields: float) -> None:
        self.program.add(
            Kind.LINEAR, type=matrix.type, weight=matrix.weight, bias=matrix.bias, factors=matrix.factors, source=x,
            to=to, inputs=matrix.inputs, outputs=len(matrix.weight), **fields,
        )  # fmt: skip

    def _narrow(self, rank: int) -> Tensor:
        """Room for what an adapter's first product gives."""
        if rank not in self._narrows:
            self._narrows[rank] = torch.empty(ROWS, rank)
        return self._narrows[rank]

    def _norm(self, norm: nn.Module, x: Tensor, to: Tensor, *, heads: int = 1, add: int = 0) -> None:
        assert isinstance(norm, RMSNorm | LayerNorm)
        weight = wide(norm.weight)
        centred = isinstance(norm, LayerNorm)
        self.program.add(
            Kind.NORM, weight=weight + 1 if isinstance(norm, RMSNorm) and norm.offset else weight,
            bias=wide(norm.bias) if isinstance(norm, LayerNorm) else None, source=x, to=to, inputs=len(weight),
            outputs=heads * len(weight), stride=x.stride(0), eps=norm.eps, centred=int(centred), add=add,
        )  # fmt: skip

    def _angles(self, rope: Rope) -> Tensor:
        """Where cos and sin of the step's positions stand, (R, D); computed once a step, before their first use."""
        if rope not in self.angles:
            self.angles[rope] = torch.empty(ROWS, self.config.head_dim)
            base = frequencies(rope, self.config.head_dim, None, torch.device("cpu")).contiguous()
            self.program.add(
                Kind.ANGLES, source=base, to=self.angles[rope], outputs=self.config.head_dim, scale=rope.attention_scale
            )
        return self.angles[rope]


def in_parts(chunks: Sequence[Chunk], most: int) -> Iterator[list[Chunk]]:
    """The chunks in their order, cut where needed, in parts of at most `most` tokens."""
    part: list[Chunk] = []
    room = most
    for whole in chunks:
        done = 0
        while done < len(whole.tokens):
            tokens = whole.tokens[done : done + room]
            done += len(tokens)
            left = len(whole.tokens) - done
            wanted = max(0, whole.wanted - left) if left < whole.wanted else 0
            start = whole.start + done - len(tokens)
            part.append(replace(whole, tokens=tokens, start=start, wanted=min(wanted, len(tokens))))
            room -= len(tokens)
            if not room:
                yield part
                part, room = [], most
    if part:
        yield part
