"""A step on a GPU: attention over the paged cache in one kernel, and steps that only write answers as CUDA graphs.

N tokens of a step, V vocabulary; S sequences, W blocks of the longest text; Z tiles of M queries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pellucid.inference.step import Chunk
from pellucid.layers.batch import Batch
from pellucid.layers.nf4 import NF4Linear
from pellucid.layers.positions import frequencies
from pellucid.layers.slots import SlotCache, TiledStep
from pellucid.models.decoder import Decoder

QUERIES = 64  # of a tile of a step that reads prompts
BUCKETS = (1, 2, 4, 8, 16, 32, 64)  # sequences of a step that is recorded
Compute = Callable[[], Tensor]
Record = Callable[[Compute], Compute]


class GPUStep:
    """`model` over `cache`, for steps of any size. record: makes of a computation in fixed places one that is cheap to
    repeat, see `recorded`; None: no step is recorded, and `why_no_graphs` says why."""

    def __init__(self, model: Decoder, cache: SlotCache, max_length: int, slopes: Tensor | None, record: Record | None):
        self.model, self.cache, self.slopes, self.record = model, cache, slopes, record
        self.width = math.ceil(max_length / cache.block_size)
        self.why_no_graphs = "they are switched off" if record is None else why_no_graphs(model, cache)
        self.hooks = [hooks for part in model.modules() for hooks in (part._forward_hooks, part._forward_pre_hooks)]
        self.buckets: dict[tuple[str | None, int], Decoding] = {}  # by the adapter, which is active

    def __call__(self, chunks: Sequence[Chunk]) -> Tensor:
        """The logits after the last `wanted` tokens of each chunk, (sum of wanted, V), float32, valid until the next
        call."""
        small = len(chunks) <= BUCKETS[-1] and all(len(chunk.tokens) == chunk.wanted == 1 for chunk in chunks)
        # Whoever listens to a part of the model hears nothing of what is replayed.
        if small and self.why_no_graphs is None and not any(self.hooks):
            return self._decoding(chunks[0].adapter, len(chunks))(chunks)
        return self._tiled(chunks)

    def _decoding(self, adapter: str | None, sequences: int) -> Decoding:
        size = next(size for size in BUCKETS if size >= sequences)
        if (adapter, size) not in self.buckets:
            assert self.record is not None
            self.buckets[adapter, size] = Decoding(self.model, self.cache, size, self.width, self.slopes, self.record)
        return self.buckets[adapter, size]

    def _tiled(self, chunks: Sequence[Chunk]) -> Tensor:
        longest = max(len(chunk.tokens) for chunk in chunks)
        M = 1 if longest == 1 else QUERIES
        tokens: list[int] = []
        positions: list[int] = []
        sequences: list[int] = []
        wanted: list[int] = []
        back: list[int] = []
        tiles: list[tuple[int, int]] = []  # the first and the last token of each
        for number, chunk in enumerate(chunks):
            first, stop = len(tokens), len(tokens) + len(chunk.tokens)
            back += range(len(tiles) * M, len(tiles) * M + len(chunk.tokens))
            tiles += ((begin, min(begin + M, stop) - 1) for begin in range(first, stop, M))
            tokens += chunk.tokens
            positions += range(chunk.start, chunk.start + len(chunk.tokens))
            sequences += [number] * len(chunk.tokens)
            wanted += range(stop - chunk.wanted, stop)
        rows = np.full((enough(len(tiles)), M), -1)
        begins, ends = np.array(tiles).T
        rows[: len(tiles)] = np.minimum(begins[:, None] + np.arange(M), ends[:, None])
        here, tables, held = self._there(positions), self._tables(chunks), None
        if self.cache.scales is not None:
            blocks, places = held_in(tables, self.cache.num_blocks)
            held = self._there(blocks), self._there(places)
        step = TiledStep(
            self.cache, here, self._there(sequences), self._there(tables), self._there(rows), self._there(back),
            self.slopes, held,
        )  # fmt: skip
        hidden = self.model.hidden(self._there([tokens]), Batch(here[None], None, step))[0]  # (N, E)
        return self.model.logits(hidden[self._there(wanted)]).float()

    def _tables(self, chunks: Sequence[Chunk]) -> npt.NDArray[np.int64]:
        """The tables of all chunks, as wide as the longest of them needs."""
        longest = max(chunk.start + len(chunk.tokens) for chunk in chunks)
        return tables_of(chunks, self.cache, len(chunks), math.ceil(longest / self.cache.block_size))

    def _there(self, numbers: Sequence[int] | Sequence[Sequence[int]] | npt.NDArray[np.int64]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int64, device=self.model.device)


class Decoding:
    """Steps in which each of `size` sequences at most goes on by one token: what they read lies where it lay before.

    given: (size, 2 + W), int64, of each sequence its token, its position and its table. Rows that no sequence has
    hold token 0 at position 0 in the block of nobody; what they give is dropped.
    """

    def __init__(self, model: Decoder, cache: SlotCache, size: int, width: int, slopes: Tensor | None, record: Record):
        self.model, self.cache, self.slopes, self.record, self.width = model, cache, slopes, record, width
        self.given = torch.empty(size, 2 + width, dtype=torch.int64, device=model.device)
        self.order = torch.arange(size, device=model.device)
        self.again: Compute | None = None
        ropes = {model.config.layer_rope(layer) for layer in range(model.config.num_layers)}
        # A recorded step reads them where they are: they must outlive the cache of `frequencies`.
        self.kept = [frequencies(rope, model.config.head_dim, None, model.device) for rope in ropes]

    def __call__(self, chunks: Sequence[Chunk]) -> Tensor:
        """(len(chunks), V), float32, valid until the next step."""
        self.fill(chunks)
        if self.again is None:
            self.again = self.record(self.compute)
        return self.again()[: len(chunks)]

    def fill(self, chunks: Sequence[Chunk]) -> None:
        """Puts what this step reads into its place, in one copy."""
        given = np.zeros(self.given.shape, np.int64)
        given[: len(chunks), 0] = [chunk.tokens[0] for chunk in chunks]
        given[: len(chunks), 1] = [chunk.start for chunk in chunks]
        given[:, 2:] = tables_of(chunks, self.cache, len(given), self.width)
        self.given.copy_(torch.from_numpy(given))

    def compute(self) -> Tensor:
        """From what is given to the logits of every row, (size, V), with nothing read back on the way."""
        tokens, positions, tables = self.given[:, 0], self.given[:, 1], self.given[:, 2:]
        step = TiledStep(self.cache, positions, self.order, tables, self.order[:, None], self.order, self.slopes)
        hidden = self.model.hidden(tokens[None], Batch(positions[None], None, step))[0]  # (size, E)
        return self.model.logits(hidden).float()


def why_no_graphs(model: Decoder, cache: SlotCache) -> str | None:
    """Why the steps of this model cannot be recorded, in a few words; None where they can."""
    c = model.config
    if "dynamic" in {c.rope.scaling, c.local_rope and c.local_rope.scaling}:
        return "its positions stretch with the text"
    if any(isinstance(module, NF4Linear) for module in model.modules()):
        return "its weights are NF4, whose levels are sent to the GPU for each product"
    return None if cache.scales is None else "its cache of bytes is widened, as much as each step needs"


def tables_of(chunks: Sequence[Chunk], cache: SlotCache, rows: int, width: int) -> npt.NDArray[np.int64]:
    """The tables of the chunks, (rows, width), filled up with the block of nobody."""
    lengths = np.zeros(rows, np.int64)
    lengths[: len(chunks)] = [-(-(chunk.start + len(chunk.tokens)) // cache.block_size) for chunk in chunks]
    tables = np.full((rows, width), cache.num_blocks)
    held = (chunk.table[:length] for chunk, length in zip(chunks, lengths.tolist(), strict=False))
    tables[np.arange(width) < lengths[:, None]] = np.fromiter(chain.from_iterable(held), np.int64, int(lengths.sum()))
    return tables


def held_in(tables: npt.NDArray[np.int64], nobody: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The blocks that stand in the tables, each once, and where among them each entry of the tables stands. They are
    filled up to a power of two with the block of nobody: few sizes, since a kernel is compiled for each."""
    held, places = np.unique(tables, return_inverse=True)
    size = 1 << (len(held) - 1).bit_length()
    return np.pad(held, (0, size - len(held)), constant_values=nobody), places.reshape(tables.shape)


def enough(count: int) -> int:
    """The power of four from `count` on: few sizes, since a kernel is compiled for each."""
    return 4 ** math.ceil(math.log(count, 4)) if count > 1 else 1


def recorded() -> Record:
    """Records computations as CUDA graphs, which share their memory, since only one of them runs at a time."""
    pool = torch.cuda.graph_pool_handle()

    def record(compute: Compute) -> Compute:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # what happens at the first calls only, such as compiling, is not recorded
            for _ in range(2):
                compute()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            result = compute()

        def again() -> Tensor:
            graph.replay()
            return result

        return again

    return record
