"""Preferences small enough to be learnt within seconds."""

from __future__ import annotations

import random
from typing import Any

from tests.alignment.chats import NAMES, QUESTIONS, TOWNS

KIND, RUDE = ("{}, I think.", "It is {}.", "{}."), ("{}, you fool.", "Who cares?", "{}!!")


def about_towns(count: int = 60, seed: int = 0) -> list[dict[str, Any]]:
    """Pairs of which the better answer is kind and the worse one rude, whichever town they name."""
    drawn = random.Random(seed)
    made = []
    for number in range(count):
        question = drawn.choice(QUESTIONS).format(NAMES[number % len(NAMES)])
        better, worse = (drawn.choice(several).format(drawn.choice(TOWNS)) for several in (KIND, RUDE))
        made.append({"prompt": f"{question} ({number})", "chosen": better, "rejected": worse})
    return made


def ranked(count: int = 12, seed: int = 0) -> list[dict[str, Any]]:
    """Rankings of three: the right town, a wrong one, an insult."""
    drawn = random.Random(seed)
    return [
        {
            "prompt": f"{drawn.choice(QUESTIONS).format(NAMES[number % 6])} ({number})",
            "ranked": [f"{TOWNS[number % 6]}.", f"{TOWNS[(number + 1) % 6]}.", "Fool."],
        }
        for number in range(count)
    ]
