"""A beam search from its first step to its last, without an engine."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from torch import Tensor

from pellucid.inference.beams import Beam, EarlyStopping, Search


def beam_search(
    logprobs_of: Callable[[list[list[int]]], Tensor],
    prompt: Sequence[int],
    *,
    beams: int,
    max_tokens: int,
    stop_ids: Collection[int] = (),
    length_penalty: float = 1.0,
    early_stopping: EarlyStopping = False,
) -> list[Beam]:
    """The best `beams` answers to a prompt, from the best score down; as transformers' `generate(num_beams=beams)`.

    logprobs_of: ln P of the next token after each of some token lists, (their number, V). See `Search`.
    """
    search = Search(
        beams=beams, max_tokens=max_tokens, stop_ids=stop_ids, length_penalty=length_penalty,
        early_stopping=early_stopping,
    )  # fmt: skip
    while search.begun:
        search.advance(logprobs_of([[*prompt, *one.token_ids] for one in search.begun]))
    return search.whole
