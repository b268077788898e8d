"""Waste of the cache, beside what contiguous caches would waste."""

from __future__ import annotations

import random

import pytest

from tests.inference.test_scheduler import added, scheduler, step


def test_less_than_4_percent_of_the_cache_is_wasted() -> None:
    """Kwon et al. 2023, section 1; lengths as in chats, blocks of 16 tokens."""
    draw = random.Random(0)
    s = scheduler(count=1200, size=16, tokens=512, sequences=32, longest=2048)
    final = {}
    for number in range(150):
        sequence = added(s, draw.randint(20, 500), 1000 * number)
        final[sequence] = len(sequence.token_ids) + draw.randint(20, 400)
    while s.busy:
        for sequence, _ in step(s):
            if len(sequence.token_ids) == final[sequence]:
                s.finish(sequence)
    assert 0 < s.use.waste < 0.04
    assert s.use.held == s.use.tokens  # nothing was shared
    assert s.use.waste_contiguous_longest > 0.7


def test_waste_is_worked_by_hand() -> None:
    s = scheduler(count=8, size=4, longest=20)
    sequence = added(s, 5)
    step(s)  # 5 tokens in 2 blocks
    child = s.fork(sequence, 8)
    step(s)  # 6 and 6 tokens, the first block shared, 3 blocks
    assert (s.stats().tokens_held, s.stats().slots_taken) == (8, 12)
    s.finish(sequence)
    s.finish(child)
    use = s.use
    assert (use.held, use.taken, use.tokens) == (5 + 8, 8 + 12, 5 + 12)
    assert use.contiguous_longest == 20 * 3
    assert use.waste == pytest.approx(7 / 20)
