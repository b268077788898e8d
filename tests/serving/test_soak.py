"""Thousands of requests of every kind, good and bad, many of them broken off: nothing fails, leaks or grows."""

from __future__ import annotations

import gc
import random
import threading
from collections import Counter
from typing import Any

import psutil
import pytest

from tests.serving.live import Live, serving
from tests.serving.stand_in import tiny_engine

WORDS = ["the", "one", "in", "on", "12", "the", "end", "é", "世"]


def good(random: random.Random) -> tuple[str, dict[str, Any]]:
    """A request that can be answered."""
    text = " ".join(random.choices(WORDS, k=random.randint(1, 60)))
    common = {
        "max_tokens": random.randint(1, 20),
        "temperature": random.choice([0, 1e-6, 0.7, 1, 1e6]),
        "n": random.choice([1, 1, 2]),
        "stream": random.random() < 0.5,
        "stop": random.choice([None, "x", ["th", "é"]]),
        "seed": random.choice([None, 1, 2**63 - 1]),
    }
    if random.random() < 0.5:
        return "/v1/chat/completions", {**common, "messages": [{"role": "user", "content": text}], "logprobs": True}
    return "/v1/completions", {**common, "prompt": text, "echo": random.random() < 0.5, "logprobs": 2}


def bad(random: random.Random) -> tuple[str, Any]:
    """A request that cannot."""
    path, body = good(random)
    spoiled = {
        **body,
        random.choice(["seed", "temperature", "n", "top_p", "nonsense"]): random.choice([2**70, -1, "x", [], {}]),
    }
    return path, random.choice([spoiled, b"{", b"\xff" * random.randint(1, 2000), b"", {**body, "model": "other"}])


def client(live: Live, seed: int, requests: int, statuses: Counter[int]) -> None:
    """One request after another; a quarter of them are left before they are answered."""
    chance = random.Random(seed)
    for _ in range(requests):
        path, body = (good if chance.random() < 0.75 else bad)(chance)
        if chance.random() < 0.25:
            connection = live.connect()
            live.send(connection, "POST", path, body)
            if chance.random() < 0.5 and connection.getresponse().status == 200:
                connection.sock.settimeout(5)
            connection.close()
        else:
            statuses[live.ask("POST", path, body).status] += 1


def rounds(live: Live, clients: int, requests: int, seed: int) -> Counter[int]:
    statuses: Counter[int] = Counter()
    threads = [threading.Thread(target=client, args=(live, seed + n, requests, statuses)) for n in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return statuses


def test_a_short_soak(one_thread: None) -> None:
    with serving(tiny_engine(), max_answers=12) as live:
        statuses = rounds(live, clients=8, requests=20, seed=0)
    assert set(statuses) <= {200, 400, 404, 429} and statuses[200] > 20 and statuses[400] > 5


@pytest.mark.slow
def test_a_long_soak(one_thread: None) -> None:
    with serving(tiny_engine(), max_answers=12) as live:
        rounds(live, clients=8, requests=80, seed=0)
        gc.collect()
        before = psutil.Process().memory_info().rss
        statuses = rounds(live, clients=8, requests=250, seed=100)
        gc.collect()
        grown = psutil.Process().memory_info().rss - before
    assert set(statuses) <= {200, 400, 404, 429}
    assert grown < 16 * 2**20
