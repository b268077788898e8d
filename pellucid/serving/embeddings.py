"""POST /v1/embeddings: texts as vectors."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pellucid.errors import InputError
from pellucid.serving.answers import Embedding, Embeddings, EmbeddingUsage
from pellucid.serving.api import EmbeddingAsked
from pellucid.serving.completions import as_list
from pellucid.serving.errors import ApiError
from pellucid.serving.service import Service

if TYPE_CHECKING:
    from torch import Tensor

MAX_INPUTS = 2048  # as OpenAI's API has it


async def embed(service: Service, asked: EmbeddingAsked) -> Embeddings:
    """A vector for each input. Raises `InputError` and `ApiError` for what has none."""
    from pellucid.inference.embeddings import mean_pooled

    model = service.engine.model
    given, size = as_list(asked.input), model.config.hidden_size
    if len(given) > MAX_INPUTS:
        raise InputError(f"there are {len(given)} inputs: at most {MAX_INPUTS} are taken at once, so split them")
    if asked.dimensions is not None and asked.dimensions > size:
        raise InputError(f"dimensions = {asked.dimensions}: the model's vectors have {size}")
    with service.loop.room(1):
        ids = await service.in_text_thread(lambda: [service.prompt_ids(one) for one in given])
        for number, one in enumerate(ids, 1):
            _check(service, one, f"input {number}" if len(ids) > 1 else "the input")
        vectors = await service.loop.compute(mean_pooled(model, ids))
    tokens = sum(map(len, ids))
    return Embeddings(
        object="list",
        data=[
            Embedding(object="embedding", index=index, embedding=vector)
            for index, vector in enumerate(_written(vectors, asked))
        ],
        model=service.settings.name,
        usage=EmbeddingUsage(prompt_tokens=tokens, total_tokens=tokens),
    )


def _check(service: Service, ids: Sequence[int], name: str) -> None:
    if not ids:
        raise ApiError(400, f"{name} is empty: give at least one token", param="input")
    if len(ids) > service.max_length:
        message = f"{name} has {len(ids)} tokens and the context holds {service.max_length}: make it shorter"
        raise ApiError(400, message, param="input", code="context_length_exceeded")
    last = service.engine.vocab_size - 1
    if not 0 <= min(ids) <= max(ids) <= last:
        wrong = min(ids) if min(ids) < 0 else max(ids)
        raise ApiError(400, f"{name} has the token id {wrong}, and the vocabulary ends at {last}", param="input")


def _written(vectors: Tensor, asked: EmbeddingAsked) -> list[list[float]] | list[str]:
    """The vectors (texts, E) as they are asked for: cut to the first entries and of length 1 again; as text."""
    import torch.nn.functional as F

    found = F.normalize(vectors[:, : asked.dimensions], dim=-1).cpu()
    if asked.encoding_format == "base64":
        return [base64.b64encode(one.numpy().astype("<f4").tobytes()).decode() for one in found]
    listed: list[list[float]] = found.tolist()
    return listed
