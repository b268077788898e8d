"""One answer as the sampler sees it: what it asked for, and what has been drawn so far."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pellucid.errors import InputError
from pellucid.inference.bad_words import BadWords
from pellucid.inference.constraint import Matcher
from pellucid.inference.params import SamplingParams

if TYPE_CHECKING:
    from pellucid.tokenizer.tokenizer import Tokenizer


class History:
    """The tokens that a row has seen, and how often each is in its answer: what penalties go by."""

    def __init__(self, prompt: Iterable[int]) -> None:
        self._places = {token: place for place, token in enumerate(dict.fromkeys(prompt))}
        self.ids = array("q", self._places)
        self.counts = array("i", bytes(4 * len(self.ids)))

    def advance(self, token: int) -> None:
        place = self._places.setdefault(token, len(self.ids))
        if place == len(self.ids):
            self.ids.append(token)
            self.counts.append(0)
        self.counts[place] += 1


@dataclass(eq=False, slots=True)
class Row:
    """One answer as the sampler sees it: what it asked for, and what it has drawn so far. See `new_row`."""

    params: SamplingParams
    generator: torch.Generator
    stop_ids: Tensor  # those that the vocabulary has
    history: History | None
    words: BadWords | None
    matcher: Matcher | None
    drawn: int = 0

    @property
    def finished(self) -> bool:
        """Its constraint is met, and nothing may follow."""
        return self.matcher is not None and self.matcher.finished

    @property
    def tracked(self) -> tuple[History | BadWords | Matcher, ...]:
        return tuple(one for one in (self.history, self.words, self.matcher) if one is not None)


def new_row(
    params: SamplingParams,
    prompt: Sequence[int],
    vocab_size: int,
    *,
    stop_ids: Collection[int] = (),
    end_ids: Collection[int] = (),
    tokenizer: Tokenizer | None = None,
) -> Row:
    """A row for one answer to `prompt`.

    stop_ids: all tokens that end this answer; end_ids: those of the model and the tokenizer, which end a constrained
    one. tokenizer: needed by `bad_words` and `constraint`.
    Raises `InputError` for a token id outside the vocabulary and for a constraint that cannot be met.
    """
    params.check_vocabulary(vocab_size)
    history = words = matcher = None
    if params.repetition_penalty != 1:
        history = History(token for token in prompt if token < vocab_size)
    elif params.presence_penalty or params.frequency_penalty:
        history = History(())
    if tokenizer is None and (params.bad_words or params.constraint):
        raise InputError("bad_words and a constraint are about text: give the tokenizer too")
    if tokenizer is not None and params.bad_words:
        words = BadWords(params.bad_words, tokenizer, stop_ids)
    if tokenizer is not None and params.constraint is not None:
        matcher = Matcher(params.constraint, tokenizer, end_ids)
    generator = torch.Generator().manual_seed(params.seeded().seed or 0)
    stops = torch.tensor(sorted(token for token in stop_ids if 0 <= token < vocab_size), dtype=torch.int64)
    return Row(params, generator, stops, history, words, matcher)
