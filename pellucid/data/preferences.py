"""Preferences: which answer to a prompt is better than which, and none of them twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pellucid.data.records import DROPPED, KEPT, Record, digest

DUPLICATE = f"{DROPPED}equal to an earlier one"


def ranked(content: Mapping[str, Any]) -> tuple[list[Any], list[tuple[int, int]]]:
    """The answers of a preference, and which (better, worse) pairs of them there are."""
    if "chosen" in content:
        return [content["chosen"], content["rejected"]], [(0, 1)]
    scores = content["scores"]
    places = range(len(scores))
    return content["answers"], [(i, j) for i in places for j in places if scores[i] > scores[j]]


def distinct(records: Iterable[Record], counts: Counter[str]) -> Iterator[Record]:
    """The records without those that are equal to an earlier one, which are counted as dropped."""
    seen = set()
    for record in records:
        key = digest(record)
        if key in seen:
            counts[DUPLICATE] += 1
            counts[KEPT + record.format] -= 1  # the reading has counted it so
        else:
            seen.add(key)
            yield record


def messages_of(content: Mapping[str, Any]) -> list[Any]:
    """All messages of a conversation or a preference, the prompt once."""
    named = [message for name in ("messages", "prompt", "chosen", "rejected") for message in content.get(name, ())]
    return named + [message for answer in content.get("answers", ()) for message in answer]
