"""A conversation keeps its history, refuses what no longer fits, and survives being broken off."""

from __future__ import annotations

from contextlib import closing

import pytest
from torch import Tensor

from pellucid.errors import InputError
from pellucid.inference.conversation import Conversation
from pellucid.inference.engine import BLOCK_SIZE, Engine
from pellucid.inference.generate import generate
from pellucid.inference.params import SamplingParams
from pellucid.inference.step import Step
from tests.inference.tiny import ByteTokenizer, tiny_model

PARAMS = SamplingParams(temperature=1, max_tokens=4, seed=11, ignore_eos=True)


def conversation(system: str | None = None) -> Conversation:
    return Conversation(Engine(tiny_model(), ByteTokenizer(), max_sequences=1), PARAMS, system)


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
    again = generate(talk.engine.model, talk.tokenizer, [ids], PARAMS.with_({"seed": 12}))[
        0
    ]  # the second answer: seed + 1
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
    assert not talk.engine.busy and talk.engine.stats()["blocks_used"] == 0
    list(talk.ask("go on"))
    assert len(talk.turns) == 4


def test_ctrl_c_in_the_middle_of_a_step_frees_what_the_answer_held(monkeypatch: pytest.MonkeyPatch) -> None:
    talk = conversation()
    expected = [event.token_id for event in conversation().ask("hi")]
    compute, steps = talk.engine.runner.run, iter(range(3))

    def interrupted(step: Step) -> Tensor:
        if next(steps, None) == 2:
            raise KeyboardInterrupt
        return compute(step)

    monkeypatch.setattr(talk.engine.runner, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(talk.ask("hi"))
    assert not talk.engine.busy and talk.engine.stats()["blocks_used"] == 0
    talk.reset()
    assert [event.token_id for event in talk.ask("hi")] == expected


def test_a_question_whose_answer_nobody_reads_is_in_nobodys_way() -> None:
    talk = conversation()
    talk.ask("never read").close()
    assert len(list(talk.ask("hi"))) == 4
    assert not talk.engine.busy


def test_each_turn_computes_only_what_is_new() -> None:
    talk = conversation("be brief")
    list(talk.ask("a question of some length"))
    read = talk.engine.tokens_read
    list(talk.ask("and?"))
    stats, whole, drawn = talk.engine.stats(), talk.last.prompt_tokens if talk.last else 0, 4
    assert stats["prefix_hits"] >= BLOCK_SIZE
    assert talk.engine.tokens_read - read == whole - stats["prefix_hits"] + drawn - 1
    assert whole - stats["prefix_hits"] < len("\nuser: and?\nassistant: ") + 2 * BLOCK_SIZE


def test_reset_forgets_turns_and_keeps_the_system_prompt() -> None:
    talk = conversation("be brief")
    first = [event.token_id for event in talk.ask("hi")]
    list(talk.ask("more"))
    talk.reset()
    assert talk.messages == [{"role": "system", "content": "be brief"}]
    assert talk.context_used == 0
    assert [event.token_id for event in talk.ask("hi")] == first  # and the seed begins anew
