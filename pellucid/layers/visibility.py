"""Who sees whom: causality, windows, document borders and ALiBi become one `Mask`, made once a forward.

B batch, T queries, S keys, H heads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pellucid.layers.cache import seen_tokens
from pellucid.operations.attention import Mask


def visibility(
    new: int,
    length: int,
    window: int | None,
    documents: Tensor | None,
    slopes: Tensor | None,
    device: torch.device,
) -> Mask:
    """The mask of the last `new` tokens (queries) over those of the last `length` that they can see (keys).

    documents: (B, length), a token sees only its own document, whose tokens stand together; None: one document a row.
    slopes: (H,), ALiBi's; None: no bias.
    """
    T, S = new, seen_tokens(length, new, window)
    if slopes is None:
        if documents is None and T == 1:  # it sees all that it is given
            return Mask()
        if length == T:
            bound = window is not None and window < T
            return (
                Mask(first=first_seen(T, window, documents, device)) if bound or documents is not None else Mask(True)
            )
    query = torch.arange(length - T, length, device=device)[:, None]  # (T, 1)
    key = torch.arange(length - S, length, device=device)  # (S,)
    distance = query - key  # (T, S)
    sees = distance >= 0
    if window is not None:
        sees = sees & (distance < window)
    if documents is None:
        sees = sees[None, None]  # (1, 1, T, S)
    else:
        same = documents[:, -T:, None] == documents[:, None, -S:]  # (B, T, S)
        sees = (sees & same)[:, None]  # (B, 1, T, S)
    if slopes is None:
        return Mask(bias=sees)
    # softmax(q k^T + m * -(i - j)) (ALiBi, Press et al. 2022, section 3)
    bias = -slopes[:, None, None] * distance  # (H, T, S)
    return Mask(bias=torch.where(sees, bias, -torch.inf))


def first_seen(tokens: int, window: int | None, documents: Tensor | None, device: torch.device) -> Tensor:
    """The first token that each token of a row sees, that of its document or of its window: (B or 1, T), int32."""
    rows = 1 if documents is None else len(documents)
    place = torch.arange(tokens, device=device, dtype=torch.int32).expand(rows, -1)
    first = torch.zeros_like(place)
    if documents is not None:
        begins = documents[:, 1:] != documents[:, :-1]
        first[:, 1:] = torch.where(begins, place[:, 1:], 0).cummax(1).values
    if window is not None:
        first = torch.maximum(first, place - (window - 1))
    return first.contiguous()
