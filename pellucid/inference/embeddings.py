"""Texts as vectors: the mean of what a decoder's head would read at each token, of length 1.

N tokens, E hidden size.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid.layers.batch import Batch
from pellucid.layers.cache import KVCache
from pellucid.models.adapters import adapter_on
from pellucid.models.decoder import Decoder

PIECE = 256  # tokens that are computed at once, and for as long as they take whoever else uses the model waits


# v = m / |m|,  m = 1/N sum_i h_i,  h_i: after the final norm   (Reimers and Gurevych 2019, "Sentence-BERT", section 3)
def mean_pooled(
    model: Decoder, texts: Sequence[Sequence[int]], piece: int = PIECE, *, adapter: str | None = None
) -> Generator[None, None, Tensor]:
    """The vectors of texts of token ids, none of them empty: (texts, E), float32. adapter: whose, or the base's.

    Stops before each piece of the work, so that whoever drives it can do something else between.
    """
    means: list[Tensor] = []
    for together in _together(texts, piece):
        if len(together) > 1 or len(together[0]) <= piece:
            yield
            with adapter_on(model, adapter):
                means += _short(model, together)
            continue
        [text] = together
        cache = model.new_cache(1, len(text))
        total = torch.zeros(model.config.hidden_size, device=model.device)
        for start in range(0, len(text), piece):
            yield
            with adapter_on(model, adapter):
                total += _part(model, text[start : start + piece], start, cache)
        means.append(total / len(text))
    return F.normalize(torch.stack(means), dim=-1)


def _together(texts: Sequence[Sequence[int]], piece: int) -> Iterator[list[Sequence[int]]]:
    """Neighbours that fit into one piece, and longer ones alone."""
    group: list[Sequence[int]] = []
    for text in texts:
        if group and sum(map(len, group)) + len(text) > piece:
            yield group
            group = []
        group.append(text)
    if group:
        yield group


@torch.inference_mode()
def _short(model: Decoder, texts: Sequence[Sequence[int]]) -> list[Tensor]:
    """Their means, all computed at once, as documents that do not see each other."""
    lengths = [len(text) for text in texts]
    tokens = torch.tensor([[token for text in texts for token in text]], device=model.device)  # (1, N)
    positions = torch.cat([torch.arange(length) for length in lengths])[None].to(model.device)
    documents = torch.arange(len(texts)).repeat_interleave(torch.tensor(lengths))[None].to(model.device)
    hidden = model.hidden(tokens, Batch(positions, documents if len(texts) > 1 else None))[0]  # (N, E)
    return [one.float().mean(0) for one in hidden.split(lengths)]


@torch.inference_mode()
def _part(model: Decoder, tokens: Sequence[int], start: int, cache: KVCache) -> Tensor:
    """The sum over tokens that stand at `start` of a text, those before them being in the cache."""
    positions = torch.arange(start, start + len(tokens), device=model.device)[None]
    return (
        model.hidden(torch.tensor([list(tokens)], device=model.device), Batch(positions, None, cache))[0].float().sum(0)
    )
