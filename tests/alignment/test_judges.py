"""Judges: a rule, a reward model, and a model behind an API that is slow, biased, or talks nonsense; win rates."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.alignment.candidates import Candidates, Prompt
from pellucid.alignment.endpoint import Endpoint
from pellucid.alignment.judges import (
    UNDECIDED,
    ByEndpoint,
    Judge,
    Judged,
    by_reward_model,
    by_rule,
    by_score,
    read_verdict,
)
from pellucid.alignment.reward_model import RewardModel
from pellucid.alignment.rewards import Reward
from pellucid.alignment.win_rate import WinRate, wilson, win_rate
from pellucid.errors import InputError, PellucidError
from pellucid.models.classifier import Classifier
from tests.checkpoints.tiny import CONFIGS, random_model, tiny_tokenizer

Reply = Callable[[dict[str, Any]], "str | None"]


def prompt(text: str = "Name a town.", **columns: Any) -> Prompt:
    return Prompt(({"role": "user", "content": text},), columns)


def longer_first(request: dict[str, Any]) -> str:
    """A judge that likes length."""
    text = request["messages"][1]["content"]
    a, b = (text.split(f"[Answer {one} begins]\n")[1].split(f"\n[Answer {one} ends]")[0] for one in "AB")
    return f"[[{'C' if len(a) == len(b) else 'A' if len(a) > len(b) else 'B'}]]"


@contextmanager
def served(reply: Reply, seconds: float = 0.0, status: int = 200) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """An OpenAI-compatible API on this machine, and what it was asked. reply None: what comes is no completion."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.give({"data": [{"id": "judge-1"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            asked.append(body | {"key": self.headers.get("authorization")})
            time.sleep(seconds)
            said = reply(body)
            self.give({"choices": [{"message": {"role": "assistant", "content": said}}]} if said is not None else [])

        def give(self, content: Any) -> None:
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def pairs(judge: Judge, *answers: str) -> set[tuple[int, int]]:
    return set(next(judge([Candidates(prompt(), answers)])).pairs)


def test_a_rule_gives_all_pairs_of_unequal_scores() -> None:
    rule = Reward("short", lambda prompts, completions, **_: [-len(text) for text in completions])
    assert pairs(by_rule(rule), "abc", "a", "b") == {(1, 0), (2, 0)}


def test_a_rule_sees_the_fields_of_the_record_and_may_have_no_opinion() -> None:
    seen: list[Any] = []

    def exact(prompts: list[Any], completions: list[Any], answer: list[str]) -> list[float | None]:
        seen.append((prompts, completions))
        return [None if text == "?" else float(text == right) for text, right in zip(completions, answer, strict=True)]

    judge = by_rule(Reward("exact", exact))
    found = list(judge([Candidates(prompt(answer="Orme"), ("Orme", "Tarn", "?"))]))
    assert found[0].pairs == ((0, 1),) and seen == [(["Name a town."] * 3, ["Orme", "Tarn", "?"])]


def test_a_rule_that_fails_is_named() -> None:
    def bad(prompts: list[Any], completions: list[Any]) -> list[float]:
        raise ZeroDivisionError("oh")

    with pytest.raises(PellucidError, match=r"the reward bad failed on an answer to 'Name a town.' \(Zero"):
        pairs(by_rule(Reward("bad", bad)), "a", "b")
    with pytest.raises(PellucidError, match="the reward nan gave nan"):
        pairs(by_rule(Reward("nan", lambda prompts, completions: [float("nan")] * 2)), "a", "b")


def test_a_reward_model_judges_by_its_score() -> None:
    judge = RewardModel(Classifier.of(random_model(CONFIGS["llama"])), tiny_tokenizer())
    candidates = Candidates(prompt("12?"), ("on the 12", "in"))
    one, other = judge.score_messages([candidates.conversation(0), candidates.conversation(1)])
    assert one != other
    assert pairs(by_reward_model(judge), *candidates.answers) <= {(0, 1), (1, 0)}
    (judged,) = by_reward_model(judge)([candidates])
    assert judged.pairs == ((0, 1) if one > other else (1, 0),)


def test_an_endpoint_is_asked_in_both_orders() -> None:
    with served(longer_first) as (url, asked):
        judge = ByEndpoint(Endpoint.open(url, key="secret"))
        assert pairs(judge, "a", "abc", "ab") == {(1, 0), (2, 0), (1, 2)}
        assert pairs(judge, "a", "b") == set()
    assert len(asked) == 8 and asked[0]["model"] == "judge-1" and asked[0]["temperature"] == 0
    assert asked[0]["key"] == "Bearer secret" and "user: Name a town." in asked[0]["messages"][1]["content"]


def test_a_judge_that_prefers_a_place_is_believed_in_nothing() -> None:
    with served(lambda _: "[[A]]") as (url, _):
        (judged,) = ByEndpoint(Endpoint.open(url))([Candidates(prompt(), ("a", "b"))])
    assert judged.pairs == () and judged.swayed == 1 and judged.unusable == 0


def test_nonsense_is_counted() -> None:
    replies = iter(["Both have their charm.", "[[B]]", "[[A]] or [[B]]", ""])
    with served(lambda _: next(replies)) as (url, _):
        several = [Candidates(prompt(), ("a", "b"))] * 2
        found = list(ByEndpoint(Endpoint.open(url), together=1)(several))
    assert [one.unusable for one in found] == [1, 2] and not any(one.pairs for one in found)


def test_answers_come_in_order_whichever_is_ready_first() -> None:
    def slow_for_short(request: dict[str, Any]) -> str:
        time.sleep(0.05 if "x" in request["messages"][1]["content"] else 0)
        return longer_first(request)

    several = [
        Candidates(prompt(str(n)), ("x" if n % 2 else "y", "long") if n % 3 else ("long", "y")) for n in range(9)
    ]
    with served(slow_for_short) as (url, _):
        found = list(ByEndpoint(Endpoint.open(url))(several))
    assert [one.pairs for one in found] == [((1, 0),) if n % 3 else ((0, 1),) for n in range(9)]


def test_what_an_endpoint_does_wrong_is_one_sentence() -> None:
    several = [Candidates(prompt(), ("a", "b"))]
    with served(longer_first, seconds=0.5) as (url, _):
        slow = ByEndpoint(Endpoint(url, "m", seconds=0.1))
        with pytest.raises(PellucidError, match=r"gave no answer within 0.1 s: allow more"):
            list(slow(several))
    with served(lambda _: None) as (url, _), pytest.raises(PellucidError, match="gave what is no chat completion"):
        list(ByEndpoint(Endpoint.open(url))(several))
    with served(longer_first, status=429) as (url, _), pytest.raises(PellucidError, match="refused with status 429"):
        list(ByEndpoint(Endpoint(url, "m"))(several))
    with pytest.raises(PellucidError, match=r"no judge answers at http://127\.0\.0\.1:9/v1"):
        Endpoint.open("http://127.0.0.1:9/v1")
    with pytest.raises(InputError, match="the key of the judge has a character that no key has"):
        Endpoint.open("http://127.0.0.1:9/v1", key="secret\n")
    with pytest.raises(InputError, match="ftp://x is no address of a judge"):
        Endpoint.open("ftp://x")


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("[[A]]", 1), ("[[b]]", -1), ("I think so.\n[[C]]", 0), ("A", 1), (" b.", -1), ("Answer B", -1), ("(C)", 0),
        ("A is the better one, unlike B", None), ("[[A]][[A]]", 1), ("[[A]] [[B]]", None), ("", None), ("[[D]]", None),
    ],
)  # fmt: skip
def test_verdicts_are_read(reply: str, verdict: int | None) -> None:
    assert read_verdict(reply) == verdict


def test_wins_are_counted_and_equal_answers_are_ties_unasked() -> None:
    asked: list[Candidates] = []

    def scores(several: Any) -> list[float | None]:
        asked.extend(several)
        return [float(len(answer)) for one in several for answer in one.answers]

    prompts = [prompt(str(n)) for n in range(5)]
    found = win_rate(prompts, ["aa", "a", "b", "ccc", "x"], ["a", "aa", "b", "c", "y"], by_score(scores))
    assert (found.wins, found.losses, found.ties) == (2, 1, 2) and found.rate == 0.6 and len(asked) == 4
    assert found.interval == wilson(0.6, 5)


def test_a_win_rate_of_a_biased_judge_is_a_half() -> None:
    with served(lambda _: "[[A]]") as (url, _):
        prompts = [prompt(str(n)) for n in range(6)]
        found = win_rate(prompts, ["a"] * 6, ["b"] * 6, ByEndpoint(Endpoint.open(url)))
    assert found == WinRate(0, 0, 6, swayed=6) and found.rate == 0.5


def test_what_has_no_verdict_does_not_count() -> None:
    with served(lambda _: "?") as (url, _):
        found = win_rate([prompt()], ["a"], ["b"], ByEndpoint(Endpoint.open(url)))
    assert found.unusable == 1 and found.count == 0 and found.interval == (0.0, 1.0)


def test_no_opinion_is_no_tie() -> None:
    found = win_rate([prompt()] * 2, ["a", "?"], ["b", "c"], by_score(lambda batch: [2.0, 1.0, None, 1.0]))
    assert found == WinRate(1, 0, 0, unsaid=1) and found.rate == 1


def test_an_answer_that_a_reward_model_cannot_read_is_not_compared() -> None:
    model = RewardModel(Classifier.of(random_model(CONFIGS["llama"])), tiny_tokenizer())
    (judged,) = by_reward_model(model)([Candidates(prompt("12?"), ("on the 12", "in", "12 " * 200))])
    assert len(judged.pairs) == 1 and judged.unsaid == 2


def test_what_was_said_before_an_endpoint_failed_is_told() -> None:
    several = [Candidates(prompt(text), ("a", "bb")) for text in ("bad", "good", "good")]
    third = threading.Event()

    def reply(request: dict[str, Any]) -> str | None:
        if "bad" in request["messages"][1]["content"]:
            third.wait(5)
            return None
        return longer_first(request)

    def drawn(asked: list[dict[str, Any]]) -> Iterator[Candidates]:
        yield from several[:2]
        until = time.monotonic() + 5
        while len(asked) < 3 and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.2)  # for the last reply to be read
        third.set()
        yield several[2]

    found = []
    with served(reply) as (url, asked), pytest.raises(PellucidError, match="no chat completion"):
        for judged in ByEndpoint(Endpoint(url, "m"), together=3)(drawn(asked)):
            found.append(judged)
    assert found[:2] == [UNDECIDED, Judged(((1, 0),))]


def test_a_judge_that_is_left_asks_no_more() -> None:
    many = Candidates(prompt(), tuple("a" * n for n in range(1, 9)))  # 56 questions
    with served(longer_first, seconds=0.05) as (url, asked):
        judge = ByEndpoint(Endpoint(url, "m"), together=2)([Candidates(prompt(), ("a", "bb")), many])
        next(judge)
        judge.close()  # type: ignore[attr-defined]
        time.sleep(0.3)
        before = len(asked)
        time.sleep(0.2)
    assert len(asked) == before < 10


def test_a_server_that_drips_is_late() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            connection, _ = server.accept()
            with connection, suppress(OSError):
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                for _ in range(200):
                    connection.sendall(b" ")
                    time.sleep(0.05)

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            with pytest.raises(PellucidError, match=r"gave no answer within 0.3 s"):
                Endpoint.open(f"http://127.0.0.1:{server.getsockname()[1]}/v1", seconds=0.3)
        finally:
            thread.join()


def test_the_interval_is_that_of_the_book() -> None:
    """9 of 10, worked by hand: (0.9 + 0.19207 -+ 0.26733) / 1.38415."""
    low, high = wilson(0.9, 10)
    assert low == pytest.approx(0.59585, abs=1e-5) and high == pytest.approx(0.98212, abs=1e-5)
    assert wilson(0.0, 20)[0] == 0.0 and wilson(1.0, 20)[1] == 1.0


@given(st.integers(1, 1000), st.data())
def test_the_interval_holds_the_rate_and_is_symmetric(n: int, data: st.DataObject) -> None:
    p = data.draw(st.integers(0, 2 * n)) / (2 * n)
    low, high = wilson(p, n)
    assert 0 <= low <= p + 1e-12 and p - 1e-12 <= high <= 1
    assert wilson(1 - p, n) == pytest.approx((1 - high, 1 - low), abs=1e-9)
