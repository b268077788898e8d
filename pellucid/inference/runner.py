"""From a step to logits: tokens of many sequences through the model at once, over the paged cache.

N tokens of a step, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from pellucid.inference.gpu_step import GPUStep, recorded
from pellucid.inference.native_step import NativeStep, why_not_native
from pellucid.inference.step import Chunk, Step
from pellucid.layers.batch import Batch
from pellucid.layers.paged import PagedCache, PagedStep, Piece
from pellucid.layers.positions import alibi_slopes
from pellucid.layers.slots import SlotCache
from pellucid.models.adapters import adapted
from pellucid.models.decoder import Block, Decoder
from pellucid.operations.paged_attention import why_not as why_not_tiled


class Runner:
    """A model with its cache of `num_blocks` blocks. native: use the native step where it can run (`why_not` says why
    it does not). graphs: on a GPU steps that only write answers are recorded. int8_cache: keys and values are kept as
    bytes."""

    def __init__(
        self,
        model: Decoder,
        num_blocks: int,
        block_size: int = 16,
        *,
        native: bool = True,
        graphs: bool = True,
        int8_cache: bool = False,
    ):
        c, device = model.config, model.device
        self.model = model
        self.slopes = alibi_slopes(c.num_heads).to(device) if c.position == "alibi" else None
        self.why_not = why_not_native(model) if native else "it is switched off"
        self.why_not_tiled = why_not_tiled(device, c.head_dim)
        windows = [c.layer_window(layer) for layer in range(c.num_layers)]
        shape = (num_blocks, block_size, windows, c.num_kv_heads, c.head_dim, model.dtype, device)
        length = min(c.max_positions, num_blocks * block_size)
        self.cache: PagedCache | SlotCache
        self.native: NativeStep | None = None
        self.gpu: GPUStep | None = None
        if self.why_not_tiled is None:
            self.cache = cache = SlotCache(*shape, as_bytes=int8_cache)
            self.gpu = GPUStep(model, cache, length, self.slopes, recorded() if graphs else None)
        else:
            self.cache = PagedCache(*shape, as_bytes=int8_cache)
            self.weights_changed()
        self._adapted = list(adapted(model).values())
        self._too_many_shapes = False
        self._seen = [block.attention.pattern for block in model.blocks if isinstance(block, Block)]

    def weights_changed(self) -> None:
        """Weights have been written over in place; the native step has copies of some, such as biases."""
        if self.why_not is None and isinstance(self.cache, PagedCache):
            length = min(self.model.config.max_positions, self.cache.num_blocks * self.cache.block_size)
            self.native = NativeStep(self.model, self.cache, length)

    @property
    def how(self) -> str:
        """What computes the steps, in a few words."""
        if self.native is not None:
            return "native"
        if self.gpu is None:
            return f"PyTorch's (not native: {self.why_not})"
        reason = self.gpu.why_no_graphs
        rest = ", steps of new sizes PyTorch's: it was compiled for as many as may be" if self._too_many_shapes else ""
        return "FlexAttention" + (" and CUDA graphs" if reason is None else f" (no CUDA graphs: {reason})") + rest

    @torch.inference_mode()
    def run(self, step: Step) -> Tensor:
        """The logits after the last `wanted` tokens of each chunk, one after the other: (sum of wanted, V), float32;
        valid until the next call."""
        self.cache.copy(step.copies)
        if self.native is not None:
            return self.native(step.chunks)
        if not self._adapted:
            return self._compute(step.chunks)
        logits, before = [], [layer.active for layer in self._adapted]
        try:
            for adapter, own in groupby(step.chunks, lambda chunk: chunk.adapter):
                for layer in self._adapted:
                    layer.active = adapter if adapter is not None and adapter in layer.adapters else None
                logits.append(self._compute(list(own)).clone())  # the next ones may be written to the same place
        finally:
            for layer, active in zip(self._adapted, before, strict=True):
                layer.active = active
        return torch.cat(logits)

    def _compute(self, chunks: Sequence[Chunk]) -> Tensor:
        """The same for chunks of the adapter that is active."""
        # Who looks at the pattern of attention is shown it by plain algebra.
        if self.gpu is not None and not any(one._forward_hooks or one._forward_pre_hooks for one in self._seen):
            from torch._dynamo.exc import FailOnRecompileLimitHit

            try:
                return self.gpu(chunks)
            except FailOnRecompileLimitHit:  # of a size that the kernel is not compiled for any more
                self._too_many_shapes = True
        return self._through_torch(chunks)

    def _through_torch(self, chunks: Sequence[Chunk]) -> Tensor:
        device = self.model.device
        B = self.cache.block_size
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        wanted: list[int] = []
        pieces: list[Piece] = []
        for chunk in chunks:
            pieces.append(self._piece(chunk, len(tokens)))
            tokens += chunk.tokens
            places = range(chunk.start, chunk.start + len(chunk.tokens))
            positions += places
            slots += [chunk.table[place // B] * B + place % B for place in places]
            wanted += range(len(tokens) - chunk.wanted, len(tokens))
        view = PagedStep(self.cache, pieces, torch.tensor(slots, device=device), self.slopes)
        batch = Batch(torch.tensor([positions], device=device), None, view)
        hidden = self.model.hidden(torch.tensor([tokens], device=device), batch)[0]  # (N, E)
        return self.model.logits(hidden[torch.tensor(wanted, dtype=torch.int64, device=device)]).float()

    def _piece(self, chunk: Chunk, before: int) -> Piece:
        length = chunk.start + len(chunk.tokens)
        blocks = chunk.table[: -(-length // self.cache.block_size)]
        table = torch.tensor(blocks, device=self.model.device)
        return Piece(slice(before, before + len(chunk.tokens)), length, table)
