"""How often each pre-token occurs: the part of training that reads the text.

Text is read once and not kept. Kept is one entry for each different pre-token; when the entries outgrow the memory
budget, the rarer half of them is dropped, and how much that was is told. A pre-token that comes back afterwards is
counted from nothing, so its count can be too low, by no more than what was dropped of it. Counts are Python integers,
which have no limit.
"""

from __future__ import annotations

import os
import signal
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from itertools import chain

from pellucid.errors import InputError
from pellucid.tokenizer.bpe import repair
from pellucid.tokenizer.patterns import Splitter

Progress = Callable[[str, int, int | None], None]
"""`(phase, done, of)`: "reading" in characters, of an unknown number; "merging" in tokens."""

MEMORY_BUDGET = 1 << 30
_ENTRY = 160  # bytes of an entry besides its text: the string's header, the integer, the place in the table
_WORTH_WORKERS = 1 << 25  # characters: with fewer, starting processes takes longer than they save
_CHECKED_EVERY = 1 << 20  # characters, between looks at the budget
_BATCH = 1 << 22  # characters that a worker counts at a time


@dataclass
class Counted:
    """Pre-tokens and how often each occurs, in how many characters, and what the memory budget made us forget."""

    pretokens: dict[bytes, int] = field(default_factory=dict)
    characters: int = 0
    dropped_pretokens: int = 0
    dropped_occurrences: int = 0


def count_pretokens(
    texts: Iterable[str],
    split: str,
    *,
    workers: int | None = None,
    memory_budget: int = MEMORY_BUDGET,
    progress: Progress | None = None,
) -> Counted:
    """Split and count `texts`. Raises `InputError` when they hold nothing, or `split` is no pattern."""
    splitter = Splitter(split)
    counted = Counted()
    total: Counter[str] = Counter()
    first, texts = _take(texts, _WORTH_WORKERS)
    if workers is None:
        workers = (os.cpu_count() or 1) if sum(map(len, first)) >= _WORTH_WORKERS else 1
    texts = chain(first, texts)
    if workers == 1:
        batches: Iterable[tuple[Iterable[str], int]] = ((_pretokens(splitter, text), len(text)) for text in texts)
    else:
        batches = _parallel(texts, split, workers)
    unchecked = 0
    for pretokens, characters in batches:
        total.update(pretokens)
        counted.characters += characters
        unchecked += characters
        if unchecked >= _CHECKED_EVERY:
            unchecked = 0
            if len(total) * _ENTRY + sum(map(len, total)) > memory_budget:
                _drop_rarer_half(total, counted)
        if progress:
            progress("reading", counted.characters, None)
    if not total:
        raise InputError("there is no text to train on: all that was given is empty")
    counted.pretokens = {pretoken.encode(): count for pretoken, count in total.items()}
    return counted


def _pretokens(splitter: Splitter, text: str) -> list[str]:
    return splitter.pretokens(repair(text))


def _take(texts: Iterable[str], characters: int) -> tuple[list[str], Iterator[str]]:
    """The first texts, of at least so many characters together, and the iterator over the others."""
    texts, taken = iter(texts), []
    for text in texts:
        taken.append(text)
        characters -= len(text)
        if characters <= 0:
            break
    return taken, texts


def _parallel(texts: Iterable[str], split: str, workers: int) -> Iterator[tuple[Counter[str], int]]:
    """The same from several processes, in order. Two batches a worker are under way, however fast text comes."""
    with ProcessPoolExecutor(workers, initializer=_leave_interrupts_to_parent) as pool:
        waiting: deque[tuple[Future[Counter[str]], int]] = deque()
        try:
            while True:
                batch, texts = _take(texts, _BATCH)
                if batch:
                    waiting.append((pool.submit(_count_in_worker, split, batch), sum(map(len, batch))))
                if waiting and (not batch or len(waiting) >= 2 * workers):
                    future, characters = waiting.popleft()
                    yield future.result(), characters
                elif not batch:
                    return
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _leave_interrupts_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _count_in_worker(split: str, texts: list[str]) -> Counter[str]:
    splitter = _splitter(split)
    return Counter(chain.from_iterable(_pretokens(splitter, text) for text in texts))


_splitter = cache(Splitter)


def _drop_rarer_half(total: Counter[str], counted: Counted) -> None:
    for pretoken in sorted(total, key=total.__getitem__)[: len(total) // 2]:
        counted.dropped_pretokens += 1
        counted.dropped_occurrences += total.pop(pretoken)
