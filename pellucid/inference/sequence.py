"""One answer under way, as far as the scheduler knows it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

State = Literal["new", "waiting", "running", "ended"]


class Sequence:
    """A prompt, the answer so far, and where its keys and values are.

    token_ids: prompt and answer; the first prompt_length of them are the prompt.
    computed: how many of them stand in the cache, with the right keys and values. While an answer is written that is
        all but the last: what a step draws, the next step feeds.
    table: the blocks that hold them, ceil(computed / block size) between two steps.
    drafted: guesses at the next tokens. The engine sets them before `Scheduler.schedule`, which takes as many of them
        into the step as fit, and drops the rest.
    wanted_from: logits are wanted after each token from this position on, and not twice. By default that is the
        prompt's last token; a prompt is scored by a smaller number. Tokens before it may come from the prefix cache.
    adapter: whose changes to the weights its keys and values are computed with; sequences of different adapters share
        nothing.
    order: (when it or the one that it was forked from arrived, a number of its own): the smaller is served first.
    steps: how many steps it has held blocks for.
    """

    __slots__ = (
        "adapter",
        "computed",
        "drafted",
        "order",
        "prompt_length",
        "state",
        "steps",
        "table",
        "token_ids",
        "wanted_from",
    )

    def __init__(self, prompt: Iterable[int], *, adapter: str | None = None, wanted_from: int | None = None) -> None:
        self.token_ids = list(prompt)
        self.prompt_length = len(self.token_ids)
        self.wanted_from = self.prompt_length - 1 if wanted_from is None else wanted_from
        self.adapter = adapter
        self.computed = 0
        self.table: list[int] = []
        self.drafted: list[int] = []
        self.state: State = "new"
        self.order = (0, 0)
        self.steps = 0

    @property
    def pending(self) -> int:
        """How many known tokens are not in the cache yet: one while an answer is written."""
        return len(self.token_ids) - self.computed
