"""The engine gives what the reference gives, whatever else is under way, however full the cache is."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from pellucid.errors import InputError
from pellucid.inference.drafts import Pace
from pellucid.inference.engine import Engine
from pellucid.inference.events import Event
from pellucid.inference.generate import generate
from pellucid.inference.params import SamplingParams
from pellucid.models.decoder import Decoder
from tests.checkpoints.tiny import CONFIGS, random_model, tiny_tokenizer

GREEDY = SamplingParams(temperature=0, max_tokens=12)
MODEL = random_model(CONFIGS["llama"])


def engine(model: Decoder = MODEL, **options: Any) -> Engine:
    return Engine(
        model, tiny_tokenizer(), **{"num_blocks": 64, "max_tokens_per_step": 24, "max_sequences": 8} | options
    )


def prompts(count: int, seed: int = 0, longest: int = 40) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(256) for _ in range(rng.randint(1, longest))] for _ in range(count)]


def run(
    one: Engine, asked: Sequence[tuple[list[int], SamplingParams]], late: int = 0
) -> dict[int, dict[int, list[Event]]]:
    """All events, by request, in the order in which they were asked, and answer; the last `late` of them join later."""
    found: dict[int, dict[int, list[Event]]] = defaultdict(lambda: defaultdict(list))
    early = len(asked) - late
    ids = [one.add(*each) for each in asked[:early]]
    waiting = list(asked[early:])
    for step in range(10_000):
        for event in one.step():
            found[event.id][event.index].append(event)
        if waiting and step % 3 == 2:
            ids.append(one.add(*waiting.pop(0)))
        if not one.busy and not waiting:
            break
    assert not one.busy and one.stats()["blocks_used"] == 0
    return {number: found[id_] for number, id_ in enumerate(ids)}


def ids_of(events: list[Event]) -> list[int]:
    return [event.token_id for event in events]


@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_answers_are_those_of_the_reference(name: str) -> None:
    model = random_model(CONFIGS[name])
    asked = prompts(6)
    expected = generate(model, tiny_tokenizer(), asked, GREEDY)
    for native in (True, False):
        found = run(engine(model, native=native), [(prompt, GREEDY) for prompt in asked], late=3)
        for number, completion in enumerate(expected):
            events = found[number][0]
            assert ids_of(events) == completion.token_ids
            assert "".join(event.text for event in events) == completion.text
            assert (events[-1].finish_reason, events[-1].finish_detail) == (
                completion.finish_reason, completion.finish_detail,
            )  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        {"num_blocks": 5},  # of 16 tokens: two answers hardly fit, so that they are computed again and again
        {"max_tokens_per_step": 3, "max_sequences": 3},
        {"max_sequences": 1},
        {"max_tokens_per_step": 64},
    ],
)
def test_answers_do_not_depend_on_the_room_that_there_is(options: dict[str, int]) -> None:
    asked = [
        (prompt, SamplingParams(temperature=0.9, top_p=0.9, seed=n, max_tokens=16))
        for n, prompt in enumerate(prompts(7))
    ]
    expected = generate(MODEL, tiny_tokenizer(), [prompt for prompt, _ in asked], [params for _, params in asked])
    one = engine(**options)
    found = run(one, asked, late=4)
    assert [ids_of(found[number][0]) for number in range(7)] == [completion.token_ids for completion in expected]
    if options.get("num_blocks"):
        assert one.stats()["preemptions"] > 0


def test_a_prompt_seen_before_is_not_computed_again_and_changes_nothing() -> None:
    [prompt] = prompts(1, longest=50)
    prompt = (prompt * 50)[:40]
    one = engine()
    first = run(one, [(prompt, GREEDY)])[0][0]
    read = one.tokens_read
    second = run(one, [(prompt, GREEDY)])[0][0]
    assert ids_of(first) == ids_of(second)
    assert one.stats()["prefix_hits"] == 32 and one.tokens_read - read == read - 32


def test_several_answers_are_those_of_as_many_requests() -> None:
    [prompt] = prompts(1, seed=3)
    params = SamplingParams(temperature=1.0, seed=5, n=4, max_tokens=10)
    together = run(engine(), [(prompt, params)])[0]
    apart = generate(
        MODEL, tiny_tokenizer(), [prompt] * 4, [params.with_({"n": 1, "seed": 5 + index}) for index in range(4)]
    )
    assert [ids_of(together[index]) for index in range(4)] == [one.token_ids for one in apart]
    assert len({tuple(one.token_ids) for one in apart}) > 1


def test_the_best_of_many_are_the_likeliest_on_average() -> None:
    [prompt] = prompts(1, seed=4)
    params = SamplingParams(temperature=1.5, seed=5, n=2, best_of=6, max_tokens=8)
    given = run(engine(), [(prompt, params)])[0]
    apart = generate(
        MODEL, tiny_tokenizer(), [prompt] * 6,
        [SamplingParams(temperature=1.5, seed=5 + index, max_tokens=8, logprobs=0) for index in range(6)],
    )  # fmt: skip
    apart.sort(key=lambda one: sum(one.logprobs or []) / len(one.token_ids), reverse=True)
    assert [ids_of(given[index]) for index in range(2)] == [one.token_ids for one in apart[:2]]
    assert len(given) == 2 and given[0][0].logprob is None


@pytest.mark.parametrize("budget", [5, 64])
def test_a_prompt_is_scored_by_the_model(budget: int) -> None:
    [prompt] = prompts(1, seed=6)
    params = SamplingParams(temperature=0, max_tokens=2, logprobs=1, prompt_logprobs=2)
    events = run(engine(max_tokens_per_step=budget, max_sequences=2), [(prompt, params)])[0][0]
    with torch.no_grad():
        chances = MODEL(torch.tensor([prompt]))[0].log_softmax(-1)
    scores = events[0].prompt_logprobs
    assert scores is not None and len(scores) == len(prompt) - 1
    assert events[1].prompt_logprobs is None
    for place, (own, best) in enumerate(scores):
        assert own == pytest.approx(chances[place, prompt[place + 1]].item(), abs=1e-4)
        assert [value for _, value in best] == pytest.approx(chances[place].topk(2).values.tolist(), abs=1e-4)
    assert events[0].logprob == pytest.approx(chances[-1].max().item(), abs=1e-4)


def test_what_is_aborted_is_free_at_once() -> None:
    one = engine()
    long = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True, n=3)
    first, second = one.add(prompts(1)[0], long), one.add(prompts(1)[0], long)
    for _ in range(5):
        one.step()
    used = one.stats()["blocks_used"]
    one.abort(first)
    assert 0 < one.stats()["blocks_used"] < used
    assert {event.id for event in one.step()} == {second}
    one.abort(second)
    one.abort(second)
    one.abort(99)
    assert not one.busy and one.stats()["blocks_used"] == 0 and one.step() == []


def test_an_answer_ends_where_the_cache_does() -> None:
    one = engine(num_blocks=2)
    assert one.max_length == 32
    events = run(one, [(list(range(1, 21)), SamplingParams(temperature=0, ignore_eos=True))])[0][0]
    assert len(events) == 12 and events[-1].finish_detail == "context"
    with pytest.raises(InputError, match="the prompt has 32 tokens and the cache holds 32"):
        one.add([1] * 32, GREEDY)
    with pytest.raises(InputError, match="the prompt is empty"):
        one.add([], GREEDY)
    assert not one.busy


def test_a_request_that_leaves_no_token_fails_alone() -> None:
    one = engine()
    with pytest.MonkeyPatch.context() as patch:
        wrong = one.runner.run

        def broken(step: Any) -> torch.Tensor:
            logits = wrong(step).clone()
            if one.steps == 0:
                logits[0] = float("nan")
            return logits

        patch.setattr(one.runner, "run", broken)
        found = run(one, [([1, 2], GREEDY), ([3, 4], GREEDY)])
    assert found[0][0][-1].finish_reason == "error" and "not numbers" in str(found[0][0][-1].finish_detail)
    assert ids_of(found[1][0]) == generate(MODEL, tiny_tokenizer(), [[3, 4]], GREEDY)[0].token_ids


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_guesses_never_change_an_answer(temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts that repeat themselves, so that much is guessed, some of it right."""
    monkeypatch.setattr(Pace, "choose", lambda self, answers: True)
    asked = [
        (
            (prompt * 6)[:36],
            SamplingParams(temperature=temperature, seed=n, max_tokens=20, logit_bias=dict.fromkeys(prompt, 4)),
        )
        for n, prompt in enumerate(prompts(6, longest=6))
    ]
    expected = generate(MODEL, tiny_tokenizer(), [prompt for prompt, _ in asked], [params for _, params in asked])
    for options in ({}, {"num_blocks": 6}, {"max_tokens_per_step": 9}):
        one = engine(guesses=4, **options)
        found = run(one, asked, late=3)
        assert [ids_of(found[number][0]) for number in range(6)] == [completion.token_ids for completion in expected]
        assert ["".join(event.text for event in found[n][0]) for n in range(6)] == [one_.text for one_ in expected]
        assert 0 < one.speculation.taken < one.speculation.guessed
        assert one.steps < sum(len(completion.token_ids) for completion in expected)


def test_several_answers_and_guesses_go_together() -> None:
    prompt = [4, 5, 6, 7] * 5
    params = SamplingParams(temperature=0.9, seed=5, n=3, max_tokens=12, logit_bias={4: 5, 5: 5, 6: 5, 7: 5})
    assert run(engine(guesses=3), [(prompt, params)])[0].keys() == {0, 1, 2}
    plain, guessed = (run(engine(guesses=guesses), [(prompt, params)])[0] for guesses in (0, 3))
    assert [ids_of(plain[n]) for n in range(3)] == [ids_of(guessed[n]) for n in range(3)]


def test_with_a_cache_of_bytes_answers_do_not_depend_on_the_room_that_there_is_either() -> None:
    """Nor is a request's log-probability another one in a batch, or after a prefix that the cache holds."""
    asked = [(prompt, SamplingParams(temperature=0, max_tokens=8, logprobs=0)) for prompt in prompts(5)]
    own = [run(engine(int8_cache=True), [one])[0][0] for one in asked]
    small = engine(int8_cache=True, num_blocks=6, max_tokens_per_step=9)
    for _ in range(2):
        found = run(small, asked)
        for number, expected in enumerate(own):
            assert ids_of(found[number][0]) == ids_of(expected)
            if small.runner.why_not is None:
                assert [event.logprob for event in found[number][0]] == [event.logprob for event in expected]
    plain = engine(num_blocks=6)
    assert small.runner.cache.num_bytes() < 0.5 * plain.runner.cache.num_bytes()
