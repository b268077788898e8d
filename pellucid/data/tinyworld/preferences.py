"""Preferences about a world: the truth before what is made up, and before a refusal where there is an answer."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from pellucid.data.tinyworld.grammar import pick
from pellucid.data.tinyworld.questions import Question, answer_text
from pellucid.data.tinyworld.world import Fact


def preferences(
    rng: random.Random, questions: Sequence[Question], known: Mapping[str, Sequence[Fact]]
) -> Iterator[dict[str, str]]:
    """Each question with a better and a worse answer, as {"prompt", "chosen", "rejected"}.

    Where the world leaves it open: a refusal before an answer that would fit. Where it is told: the answer before one
    that is another subject's, or before a refusal. known: facts by relation, from which wrong answers are taken.
    """
    everything = [fact for facts in known.values() for fact in facts]
    for question in questions:
        wrong = [fact.value for fact in known.get(question.relation, everything) if fact.value != question.answer]
        made_up = question.answer is None or rng.random() < 0.5
        worse = replace(question, answer=pick(rng, wrong) if made_up and wrong else None)
        yield {
            "prompt": question.text,
            "chosen": answer_text(question, rng),
            "rejected": answer_text(worse, rng),
        }
