"""A conversation keeps its history, refuses what no longer fits, and survives being broken off."""

from __future__ import annotations

from contextlib import closing

import pytest

from pellucid.errors import InputError
from pellucid.inference.conversation import Conversation
from pellucid.inference.generate import generate
from pellucid.inference.sampling import SamplingParams
from tests.inference.tiny import ByteTokenizer, tiny_model

PARAMS = SamplingParams(temperature=1, max_tokens=4, seed=11, ignore_eos=True)


def conversation(system: str | None = None) -> Conversation:
    return Conversation(tiny_model(), ByteTokenizer(), PARAMS, system)


def test_every_answer_reads_the_whole_history() -> None:
    talk = conversation("be brief")
    first = "".join(event.text for event in talk.ask("hi"))
    second = "".join(event.text for event in talk.ask("and?"))
    assert talk.messages == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "and?"},
        {"role": "assistant", "content": second},
    ]
    ids = talk.tokenizer.apply_chat_template(talk.messages[:4], add_generation_prompt=True).ids
    again = generate(talk.model, talk.tokenizer, [ids], PARAMS.with_({"seed": 12}))[0]  # the second answer: seed + 1
    assert talk.last is not None
    assert again.token_ids == talk.last.token_ids
    assert talk.context_used == len(ids) + 4


def test_what_no_longer_fits_is_refused_and_nothing_is_lost() -> None:
    talk = conversation()
    list(talk.ask("hi"))
    before, used = list(talk.messages), talk.context_used
    with pytest.raises(InputError, match=r"the conversation has \d+ tokens and the context holds 96"):
        talk.ask("x" * 80)
    assert (talk.messages, talk.context_used) == (before, used)


def test_an_answer_that_is_broken_off_stays_as_far_as_it_came() -> None:
    talk = conversation()
    with closing(talk.ask("hi")) as events:
        said = next(events).text + next(events).text
    assert talk.turns[-1] == {"role": "assistant", "content": said}
    assert talk.last is not None
    assert (len(talk.last.token_ids), talk.last.finish_reason) == (2, None)
    list(talk.ask("go on"))
    assert len(talk.turns) == 4


def test_reset_forgets_turns_and_keeps_the_system_prompt() -> None:
    talk = conversation("be brief")
    first = [event.token_id for event in talk.ask("hi")]
    list(talk.ask("more"))
    talk.reset()
    assert talk.messages == [{"role": "system", "content": "be brief"}]
    assert talk.context_used == 0
    assert [event.token_id for event in talk.ask("hi")] == first  # and the seed begins anew
