"""A decoder as a list of native operations, and a step through it.

R rows, one token each; E hidden size, H query heads, K key-value heads, D head dimension, F intermediate size, V
vocabulary. The list reads like `Block.forward`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.inference.native_matrices import Change, Matrix, base_of, change_of, factors_of, fused, type_of, wide
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
    so do gate and up. Rows of all of the model's adapters go through the same matrices together; what an adapter adds
    to a layer is two small products for its own rows.
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
        self.adapters = {None: 0} | {name: number for number, name in enumerate(adapter_names(model), 1)}
        self.adapter, self.ranges = (
            torch.zeros(R, dtype=torch.int64),
            torch.zeros(len(self.adapters), 2, dtype=torch.int64),
        )
        self._narrows: dict[int, Tensor] = {}  # by the ranks of an adapter together
        self._factors: list[Tensor] = []
        self.program = Program()
        self._write()

    def __call__(self, chunks: Sequence[Chunk]) -> Tensor:
        """The logits after the last `wanted` tokens of each chunk, (sum of wanted, V), float32, valid until the next
        call."""
        wanted = sum(chunk.wanted for chunk in chunks)
        if wanted > len(self.logits):
            self.logits = torch.empty(wanted, self.config.vocab_size)
        done = 0
        for part in in_parts(chunks, ROWS):
            self._run(part, self.logits[done:])
            done += sum(chunk.wanted for chunk in part)
        return self.logits[:wanted]

    def _run(self, chunks: Sequence[Chunk], logits: Tensor) -> None:
        row = num_wanted = 0
        self.ranges.zero_()
        for number, chunk in enumerate(chunks):
            stop = row + len(chunk.tokens)
            self.tokens[row:stop] = torch.tensor(chunk.tokens)
            torch.arange(chunk.start, chunk.start + len(chunk.tokens), out=self.positions[row:stop])
            self.sequences[row:stop] = number
            adapter = self.adapters[chunk.adapter]
            self.adapter[row:stop] = adapter
            self.ranges[adapter, 0] = row if not self.ranges[adapter, 1] else self.ranges[adapter, 0]
            self.ranges[adapter, 1] = stop
            table = chunk.table[: math.ceil((chunk.start + len(chunk.tokens)) / self.cache.block_size)]
            self.tables[number, : len(table)] = torch.tensor(table)
            torch.arange(stop - chunk.wanted, stop, out=self.wanted[num_wanted : num_wanted + chunk.wanted])
            row, num_wanted = stop, num_wanted + chunk.wanted
        pointers = (self.tokens, self.positions, self.sequences, self.tables, self.wanted, logits, self.adapter,
                    self.ranges)  # fmt: skip
        self.program.run(Rows(*(one.data_ptr() for one in pointers), row, self.tables.shape[1], num_wanted))

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
            "apart": K * len(cache.windows),
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
        """One product, and what adapters add to it. Returns how many outputs the layers have.

        reads: how the input is read, `activation` and `gated`."""
        bases = [base_of(module) for module in modules]
        outputs, stride = [base.out_features for base in bases], to.stride(0)
        changes = {
            number: [change_of(module, name) for module in modules] for name, number in self.adapters.items() if name
        }
        found = {number: factors_of(own, outputs) for number, own in changes.items()}
        matrix = fused(bases) if len(bases) > 1 else Matrix.of(bases[0])
        self._linear(matrix, x, to, factors=self._table(found), stride=stride, add=add, **reads)
        for number, own in changes.items():
            self._adapter(number, own, x, to, outputs, reads)
        return sum(outputs)

    def _adapter(
        self, number: int, changes: Sequence[Change | None], x: Tensor, to: Tensor, outputs: Sequence[int],
        reads: Mapping[str, Any],
    ) -> None:  # fmt: skip
        """What an adapter adds to layers side by side, y += c s B (A x): A x of all of them is one product."""
        downs = [change.down for change in changes if change is not None]
        if not downs:
            return
        ranks = [len(change.down) if change is not None else 0 for change in changes]
        down = Matrix.plain(torch.cat(downs))
        narrow = self._narrows.setdefault(sum(ranks), torch.empty(ROWS, sum(ranks)))
        self._linear(down, x, narrow, adapter=number, **reads)
        start = read = 0
        for change, count, rank in zip(changes, outputs, ranks, strict=True):
            if change is not None:
                scale = self._table({number: change.scale})
                self.program.add(
                    Kind.SPREAD, weight=change.up, factors=scale, source=narrow[:, read:], to=to[:, start:],
                    inputs=rank, outputs=count, row=narrow.shape[1], stride=to.stride(0), adapter=number,
                )  # fmt: skip
            start, read = start + count, read + rank

    def _table(self, factors: Mapping[int, Tensor | None]) -> Tensor | None:
        """Where the factors of each adapter's rows lie; None where there are none."""
        table = torch.zeros(len(self.adapters), dtype=torch.int64)
        for number, vector in factors.items():
            if vector is not None:
                self._factors.append(vector)
                table[number] = vector.data_ptr()
        return table if table.any() else None

    def _linear(
        self, matrix: Matrix, x: Tensor, to: Tensor | None, *, factors: Tensor | None = None, **fields: float
    ) -> None:
        self.program.add(
            Kind.LINEAR, type=matrix.type, weight=matrix.weight, bias=matrix.bias, factors=factors, source=x, to=to,
            inputs=matrix.inputs, outputs=len(matrix.weight), **fields,
        )  # fmt: skip

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
    """The chunks in their order, cut where needed, in parts of at most `most` tokens, in each of which the chunks of an
    adapter stand together."""
    part: list[Chunk] = []
    room = most
    for whole in chunks:
        done = 0
        if part and part[-1].adapter != whole.adapter and any(one.adapter == whole.adapter for one in part):
            yield part
            part, room = [], most
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
