"""Answers in the order of their prompts, each as soon as it can be given; and the bar that shows how far they are."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
import rich.console
from rich.console import Console

from pellucid.errors import InputError
from pellucid.inference.engine import Engine
from pellucid.inference.output import Outputs, answer_all, stream
from pellucid.inference.params import SamplingParams
from pellucid.inference.progress import AnswerBar
from tests.inference.tiny import ByteTokenizer, tiny_model

LONG, SHORT = (SamplingParams(temperature=0, max_tokens=count, ignore_eos=True) for count in (12, 3))


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(tiny_model(), ByteTokenizer(), max_sequences=4)


@pytest.fixture(autouse=True)
def leaves_nothing(engine: Engine) -> Iterator[None]:
    yield
    assert not engine.busy and engine.stats()["blocks_used"] == 0


def test_each_comes_as_soon_as_it_and_those_before_it_are_done(engine: Engine) -> None:
    with Outputs(engine) as outputs:
        for prompt, params in (([1, 2], SHORT), ([3, 4], LONG), ([5, 6], SHORT)):
            outputs.add(prompt, params)
        answered = outputs.answered()
        assert next(answered).prompt == (1, 2)
        assert engine.busy  # the long one is still written
        assert [(one.prompt, len(one.answers[0].token_ids)) for one in answered] == [((3, 4), 12), ((5, 6), 3)]


def test_what_is_left_is_aborted(engine: Engine) -> None:
    with Outputs(engine) as outputs:
        outputs.add([1, 2], SHORT)
        outputs.add([3, 4], LONG)
        next(outputs.answered())
    with Outputs(engine) as outputs, pytest.raises(InputError, match="the prompt"):
        outputs.add([1, 2], LONG)
        outputs.add([1] * 200, LONG)


def test_a_stream_is_the_answer_and_can_be_broken_off(engine: Engine) -> None:
    [answer] = answer_all(engine, [[7, 8]], LONG)
    assert [event.token_id for event in stream(engine, [7, 8], LONG)] == answer.token_ids
    events = stream(engine, [7, 8], LONG)
    next(events)
    events.close()


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("shown", [True, False])
def test_a_bar_shows_how_far_it_is_at_a_terminal(
    engine: Engine, terminal: bool, shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(
        rich.console, "Console", lambda stderr: Console(file=screen, force_terminal=terminal, width=100)
    )
    with Outputs(engine) as outputs:
        for prompt in ([1, 2], [3, 4]):
            outputs.add(prompt, SHORT)
        with AnswerBar(outputs, shown=shown) as bar:
            assert len(list(outputs.answered(bar.update))) == 2
            bar.update()
    if terminal and shown:
        assert "2/2" in screen.getvalue() and "tokens/s in" in screen.getvalue()
    else:
        assert "2/2" not in screen.getvalue()
