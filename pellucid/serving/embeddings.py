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


async def embed(service: Service, asked: EmbeddingAsked) -> str:
    """A vector for each input, as the JSON of `Embeddings`. Raises `InputError` and `ApiError` for what has none."""
    from pellucid.inference.embeddings import mean_pooled

    model = service.engine.model
    adapter, name = service.engine.adapter(service.adapter(asked.model)), asked.model or service.settings.name
    given, size = as_list(asked.input, "input"), model.config.hidden_size
    if len(given) > MAX_INPUTS:
        raise InputError(f"there are {len(given)} inputs: at most {MAX_INPUTS} are taken at once, so split them")
    if asked.dimensions is not None and asked.dimensions > size:
        raise InputError(f"dimensions = {asked.dimensions}: the model's vectors have {size}")
    with service.loop.room(1):
        ids = await service.in_text_thread(lambda: [service.prompt_ids(one) for one in given])
        for number, one in enumerate(ids, 1):
            _check(service, one, f"input {number}" if len(ids) > 1 else "the input")
        vectors = await service.loop.compute(mean_pooled(model, ids, adapter=adapter))
        tokens = sum(map(len, ids))
        return await service.in_text_thread(lambda: _answer(_written(vectors, asked), name, tokens))


def _answer(vectors: Sequence[list[float] | str], model: str, tokens: int) -> str:
    """JSON; millions of numbers are not looked at one by one again."""
    data = [
        Embedding.model_construct(object="embedding", index=index, embedding=vector)
        for index, vector in enumerate(vectors)
    ]
    usage = EmbeddingUsage(prompt_tokens=tokens, total_tokens=tokens)
    return Embeddings.model_construct(object="list", data=data, model=model, usage=usage).model_dump_json()


def _check(service: Service, ids: Sequence[int], name: str) -> None:
    from pellucid.inference.embeddings import PIECE
    from pellucid.inference.room import PART, bytes_a_token, free_memory

    if not ids:
        raise ApiError(400, f"{name} is empty: give at least one token", param="input")
    if len(ids) > service.max_length:
        message = f"{name} has {len(ids)} tokens and the context holds {service.max_length}: make it shorter"
        raise ApiError(400, message, param="input", code="context_length_exceeded")
    model = service.engine.model
    cache, free = len(ids) * bytes_a_token(model.config, model.dtype), free_memory(model.device)
    if len(ids) > PIECE and cache > PART * free:
        message = (
            f"{name} has {len(ids)} tokens, whose keys and values take {cache / 2**20:.0f} MiB, more than half of the "
            f"{free / 2**20:.0f} MiB that are free: make it shorter"
        )
        raise ApiError(400, message, param="input")
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
