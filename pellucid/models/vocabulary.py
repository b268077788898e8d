"""A vocabulary that grows: rows for new tokens in a trained model's embedding and head."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from pellucid.errors import InputError
from pellucid.models.config import ModelConfig
from pellucid.models.decoder import Decoder


@torch.no_grad()
def add_tokens(model: Decoder, tokens: Collection[int], known: int) -> None:
    """Makes room for `tokens` in embedding and head, in place; what the model says of other texts hardly changes.

    tokens: the ids of the new ones. known: the ids below it are of tokens that the model was trained on (a model may
    have spare rows beyond them). A new row is the mean of the known ones. For the head that is the safe choice
    (Hewitt 2021, "Initializing New Word Embeddings"): by Jensen's inequality
        exp(h . mean(w)) <= mean(exp(h . w)) = Z / V,
    so k new tokens together get at most k / (V + k) of the probability, whatever h is.
    """
    if not tokens:
        return
    if model.quantised or not isinstance(model.embedding, nn.Embedding):
        raise InputError("a quantised model cannot take new tokens: load it without quantize")
    config = model.config
    size = max(config.vocab_size, max(tokens) + 1)
    model.embedding.weight = _grown(model.embedding.weight, size, tokens, known)
    model.embedding.num_embeddings = size
    if isinstance(model.head, nn.Linear):
        model.head.weight = _grown(model.head.weight, size, tokens, known)
        model.head.out_features = size
    model.config = ModelConfig(**{**config.model_dump(exclude_unset=True), "vocab_size": size})


def _grown(weight: Tensor, size: int, tokens: Collection[int], known: int) -> nn.Parameter:
    """weight: (V, E) -> (size, E)."""
    mean = weight[:known].mean(dim=0, dtype=torch.float32).to(weight.dtype)
    rows = mean.expand(size, -1).clone()
    rows[: len(weight)] = weight
    rows[list(tokens)] = mean
    return nn.Parameter(rows)
