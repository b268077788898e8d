"""Who says which of several answers is the better one: a score (a rule's, a reward model's), or another model.

A judge takes candidates and gives, for each prompt in turn, the pairs of which it is sure. People judge at the terminal
(`pellucid prefer`), and are judges like the others.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from math import comb
from threading import Event
from typing import Any

from pellucid.alignment.candidates import Candidates
from pellucid.alignment.endpoint import Endpoint
from pellucid.alignment.reward_model import RewardModel, said_ids
from pellucid.alignment.rewards import Reward
from pellucid.data.messages import text_of
from pellucid.errors import PellucidError

TOGETHER = 8  # prompts of an endpoint under way at once


@dataclass(frozen=True, slots=True)
class Judged:
    """pairs: (the better answer, the worse one), by number. swayed: pairs of which the judge preferred whichever stood
    first, or last. unusable: replies from which no verdict could be read. unsaid: pairs on which the judge would not
    say anything, which is not to say that neither is better."""

    pairs: tuple[tuple[int, int], ...]
    swayed: int = 0
    unusable: int = 0
    unsaid: int = 0


UNDECIDED = Judged((), unusable=1)  # of a prompt that is to be asked again

Judge = Callable[[Iterable[Candidates]], Iterator[Judged]]
"""What judges are: one `Judged` for each of the candidates, in order, as soon as it is there."""

Scores = Callable[[Sequence[Candidates]], Sequence[float | None]]
"""A number for each answer of these candidates, one after the other; the higher the better. None: of this one nothing
is said."""


def by_score(scores: Scores, together: int = 16) -> Judge:
    """The judge that prefers the higher score, and neither of equal ones. together: prompts at a time."""

    def judge(several: Iterable[Candidates]) -> Iterator[Judged]:
        for batch in batches(several, together):
            found = iter(scores(batch))
            for one in batch:
                own = [next(found) for _ in one.answers]
                known = sum(score is not None for score in own)
                yield Judged(tuple(ordered(own)), unsaid=comb(len(own), 2) - comb(known, 2))

    return judge


def ordered(scores: Sequence[float | None]) -> Iterator[tuple[int, int]]:
    """(better, worse) of all that have unequal scores."""
    known = [(number, score) for number, score in enumerate(scores) if score is not None]
    for (i, one), (j, other) in combinations(known, 2):
        if one != other:
            yield (i, j) if one > other else (j, i)


def batches(several: Iterable[Candidates], size: int) -> Iterator[list[Candidates]]:
    batch: list[Candidates] = []
    for one in several:
        batch.append(one)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def by_reward_model(model: RewardModel) -> Judge:
    """The judge that asks a reward model. Of an answer that is longer than this reads it says nothing."""

    def scores(batch: Sequence[Candidates]) -> list[float | None]:
        said = [said_ids(model.tokenizer, one.conversation(n)) for one in batch for n in range(len(one.answers))]
        read = [number for number, ids in enumerate(said) if len(ids) <= model.model.config.max_positions]
        found = dict(zip(read, model.score([said[number] for number in read]), strict=True))
        return [found.get(number) for number in range(len(said))]

    return by_score(scores)


def by_rule(rule: Reward) -> Judge:
    """The judge that asks a Python function, called as rewards are (`alignment/rewards.py`), the columns being the
    other fields of the prompts' records. Where it says nothing of an answer, that answer is not compared.

    A prompt of one message is given as its text, a longer one as messages. Raises `PellucidError` as `Reward` does.
    """

    def scores(batch: Sequence[Candidates]) -> list[float | None]:
        whose = [one.prompt for one in batch for _ in one.answers]
        names = dict.fromkeys(name for prompt in whose for name in prompt.columns)
        columns = {name: [prompt.columns.get(name) for prompt in whose] for name in names}
        answers = [answer for one in batch for answer in one.answers]
        asked = [
            (text_of(prompt.messages[0]), answer)
            if len(prompt.messages) == 1
            else (list(prompt.messages), [{"role": "assistant", "content": answer}])
            for prompt, answer in zip(whose, answers, strict=True)
        ]
        return rule([prompt for prompt, _ in asked], [answer for _, answer in asked], columns)

    return by_score(scores)


INSTRUCTION = """\
You compare two answers to the same request. Say which one a careful reader would rather have: one that is correct, \
that does what was asked, that harms nobody, and that is no longer than it needs to be. Neither the order of the two \
nor their length is a reason. Reply with [[A]] if answer A is better, [[B]] if answer B is better, or [[C]] if \
neither is, and with nothing else."""

_MARKED = re.compile(r"\[\[\s*([ABC])\s*\]\]", re.IGNORECASE)
_ALONE = re.compile(r"\W*(?:answer\s+)?([ABC])\W*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ByEndpoint:
    """The judge that asks a model behind an OpenAI-compatible API.

    Each pair is asked for twice, in both orders, since models prefer a place (Zheng et al. 2023, "Judging
    LLM-as-a-Judge", section 3.4): a verdict counts only where both agree. instruction: what the model is told first.
    """

    endpoint: Endpoint
    instruction: str = INSTRUCTION
    together: int = TOGETHER

    def __call__(self, several: Iterable[Candidates]) -> Iterator[Judged]:
        """Raises `PellucidError` where the endpoint gives no answer, once what it did give is told.

        However it ends, no more is asked: what is under way ends with its request.
        """
        pool, stop = ThreadPoolExecutor(self.together), Event()
        waiting: deque[Future[Judged]] = deque()
        try:
            for one in several:
                waiting.append(pool.submit(self.judge, one, stop))
                if len(waiting) >= self.together:
                    yield waiting[0].result()
                    waiting.popleft()
            while waiting:
                yield waiting[0].result()
                waiting.popleft()
        except (PellucidError, KeyboardInterrupt):
            stop.set()
            for future in waiting:
                yield future.result() if future.done() and future.exception() is None else UNDECIDED
            raise
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def judge(self, one: Candidates, stop: Event) -> Judged:
        """All pairs of one prompt; `UNDECIDED` where it was stopped before the last."""
        pairs, swayed, unusable = [], 0, 0
        for i, j in combinations(range(len(one.answers)), 2):
            if stop.is_set():
                return UNDECIDED
            there = self.verdict(one, i, j)
            if stop.is_set():
                return UNDECIDED
            back = self.verdict(one, j, i)
            unusable += (there is None) + (back is None)
            if there is None or back is None:
                continue
            if there + back == 0 and there:
                pairs.append((i, j) if there > 0 else (j, i))
            elif there + back and there and back:
                swayed += 1
        return Judged(tuple(pairs), swayed, unusable)

    def verdict(self, one: Candidates, first: int, second: int) -> int | None:
        """1: the first is better; -1: the second; 0: neither. None: the reply says nothing of the kind."""
        request = (
            f"The conversation:\n{as_text(one.prompt.messages)}\n\n"
            f"[Answer A begins]\n{one.answers[first]}\n[Answer A ends]\n\n"
            f"[Answer B begins]\n{one.answers[second]}\n[Answer B ends]"
        )
        reply = self.endpoint.reply(
            [{"role": "system", "content": self.instruction}, {"role": "user", "content": request}]
        )
        return read_verdict(reply)


def read_verdict(reply: str) -> int | None:
    """What a judge's reply says: 1 for A, -1 for B, 0 for neither; None where it names none, or several."""
    named = {found.upper() for found in _MARKED.findall(reply)}
    if not named and (alone := _ALONE.fullmatch(reply)):
        named = {alone[1].upper()}
    return {"A": 1, "B": -1, "C": 0}[named.pop()] if len(named) == 1 else None


def as_text(messages: Sequence[Mapping[str, Any]]) -> str:
    return "\n".join(f"{message['role']}: {text_of(message)}" for message in messages)
