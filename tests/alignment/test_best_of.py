"""Best of n and majority vote: against counting all ways, and with an engine."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.alignment import best_of
from pellucid.alignment.best_of import Drawn, curve, draw, draw_picture, expected_best, expected_vote, table
from pellucid.alignment.prompts import Prompt
from pellucid.alignment.rewards import Reward
from pellucid.cli.app import run as command
from pellucid.inference.engine import Engine
from pellucid.models.decoder import Decoder
from tests.alignment.chats import CONFIG, base_tokenizer, save_base, write_lines
from tests.alignment.toy import letters

pytestmark = pytest.mark.usefixtures("one_thread")


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=8), st.data())
def test_the_best_over_all_ways(rewards: list[float], data: st.DataObject) -> None:
    n = data.draw(st.integers(1, len(rewards)))
    ways = [max(chosen) for chosen in combinations(rewards, n)]
    assert expected_best(rewards, n) == pytest.approx(mean(ways), abs=1e-9)


def test_votes() -> None:
    texts = ("So \\boxed{7}", "#### 7", "8", "<think>7</think><answer>8</answer>", "7.")
    drawn = Drawn(texts, (5,) * 5, (1.0, 1.0, 0.0, 0.0, 1.0))
    assert expected_vote(drawn, 5) == 1
    assert expected_vote(Drawn(texts[2:], (5,) * 3, (0.0, 0.0, 1.0)), 3) == 0
    assert expected_vote(drawn, 1) == pytest.approx(0.6)  # one of five, three of which are right
    many = Drawn(("7", "8") * 8, (5,) * 16, (1.0, 0.0) * 8)
    assert expected_vote(many, 8, "0 1") == expected_vote(many, 8, "0 1") != expected_vote(many, 8, "0 2")
    tie = Drawn(("a", "b"), (1, 1), (1.0, 0.0))
    assert expected_vote(tie, 2) == 1


def test_curve_and_picture(tmp_path: Path) -> None:
    drawn = [Drawn(("7", "7", "8", "9"), (2, 2, 4, 4), (1.0, 1.0, 0.0, 0.0)), Drawn(("1",) * 4, (3,) * 4, (0.0,) * 4)]
    points = curve(drawn, [1, 2, 4])
    assert [point.tokens for point in points] == [3, 6, 12]
    assert [point.one for point in points] == [0.25] * 3
    assert [point.best for point in points] == pytest.approx([0.25, 5 / 12, 0.5])
    assert points[-1].vote == 0.5
    assert len(table(points).splitlines()) == 4
    draw_picture(points, tmp_path / "curve.svg")
    assert "majority vote" in (tmp_path / "curve.svg").read_text()


def test_draw() -> None:
    tokenizer = base_tokenizer()
    prompts = [Prompt("1", tuple(tokenizer.encode(text)), text, {"level": 1}) for text in ("Say 1", "Say 2")]
    engine = Engine(Decoder(CONFIG, seed=1), tokenizer)
    reward = Reward("letters", letters)
    first = draw(engine, prompts, [reward], 3, max_tokens=4, seed=5)
    assert [len(one.texts) for one in first] == [3, 3] and all(max(one.tokens) <= 4 for one in first)
    assert first == draw(engine, prompts, [reward], 3, max_tokens=4, seed=5)
    assert first != draw(engine, prompts, [reward], 3, max_tokens=4, seed=6)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = save_base(tmp_path / "base")
    prompts = write_lines(tmp_path / "prompts.jsonl", [{"prompt": f"Say {n}", "answer": "x"} for n in range(3)])
    asked = ["best-of", str(base), "--prompts", str(prompts), "--reward", "exact", "--max-tokens", "4"]
    assert command([*asked, "--answers", "1,2", "--json", "-o", str(tmp_path / "curve.svg")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["prompts"] == 3 and [point["n"] for point in found["points"]] == [1, 2]
    assert (tmp_path / "curve.svg").is_file()
    assert command([*asked, "--answers", "0,2"]) == 2
    assert "numbers from 1 to 128" in capsys.readouterr().err
    assert command([*asked[:-1], "128", "--answers", "1"]) == 2
    assert "holds 128 tokens" in capsys.readouterr().err
    write_lines(prompts, [{"prompt": text, "answer": "x"} for text in ("Say 1", "many " * 99)])
    assert command([*asked, "--answers", "1", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["prompts"] == 1 and "data 1 dropped: prompt too long" in printed.err


def test_without_matplotlib_nothing_is_drawn_in_vain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(best_of, "find_spec", lambda _: None)
    asked = ["best-of", "no/such/model", "--prompts", "none.jsonl", "--reward", "exact"]
    assert command([*asked, "-o", str(tmp_path / "curve.svg")]) == 2
    assert "Matplotlib is not installed" in capsys.readouterr().err
