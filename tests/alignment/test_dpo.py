"""Learning from preferences from the first line to the report: known values, parity, it learns, it can be killed."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

import pellucid
from pellucid.alignment import dpo_run
from pellucid.alignment.dpo import MEASURES, compare_answers, measures_of, preference_loss
from pellucid.alignment.dpo_recipe import DPORecipe
from pellucid.alignment.dpo_run import learn_preferences, read_data
from pellucid.alignment.policy import open_policy
from pellucid.alignment.preference_losses import LOSSES, Settings
from pellucid.alignment.reference import answer_log_probs, files_of, reference_log_probs
from pellucid.checkpoints.save import About, save
from pellucid.cli.app import run as command
from pellucid.data.mismatched import mismatched, partner
from pellucid.errors import InputError
from pellucid.training.metrics import read_metrics
from pellucid.training.recipe import parse_recipe
from pellucid.training.step import take_gradient
from tests.alignment.chats import write_lines
from tests.alignment.pairs import content, recipe
from tests.training.tiny_run import ended, fork

pytestmark = pytest.mark.usefixtures("one_thread")
LN2 = math.log(2)


def silent(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that has ended, with what it was made from."""
    folder = tmp_path_factory.mktemp("learnt")
    outcome, comparison = learn_preferences(recipe(folder), say=silent)
    assert outcome.steps == 12 and comparison is not None
    return folder


def test_the_loss_is_ln_2_before_the_first_step(learnt: Path) -> None:
    """A2. Policy and reference are one model: rewards of 0, no margin."""
    first = read_metrics(learnt / "run")[0]
    # Both are sums of some 10 log-probabilities of about -5.6, each right within 1e-6
    assert first["loss"] == pytest.approx(LN2, abs=1e-5)
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "kl"):
        assert first[name] == pytest.approx(0, abs=1e-4)
    assert set(MEASURES) <= first.keys() and first["logps/chosen"] < 0 and first["learnt"] == 4


def test_it_prefers_the_better_answers_of_pairs_that_it_has_not_seen(learnt: Path) -> None:
    measured = [line for line in read_metrics(learnt / "run") if "validation_rewards/accuracies" in line]
    assert [line["step"] for line in measured] == [6, 12]
    assert measured[-1]["validation_rewards/accuracies"] == 1 and measured[-1]["validation_loss"] < LN2
    assert measured[-1]["validation_rewards/margins"] > 0


def test_the_report_has_answers_the_change_and_the_distance(learnt: Path) -> None:
    """A5."""
    report = json.loads((learnt / "run/report.json").read_text())
    assert len(report["answers"]) == 3 and report["changes"][-1]["relative"] > 0
    measures = {one["name"].split(",")[0]: (one["before"], one["after"]) for one in report["measures"]}
    assert measures["loss"][0] == pytest.approx(LN2, abs=1e-5) and measures["rewards/accuracies"][1] == 1
    assert measures["rewards/accuracies"][0] is None and measures["KL from the base"][1] != 0
    assert "rewards/accuracies, held-out pairs: 1.000 after." in (learnt / "run/report.md").read_text()


def test_a_run_that_is_killed_goes_on_bit_for_bit(learnt: Path, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(content(learnt, run=str(tmp_path / "run"), train={"save_every": 4})))
    child = fork(lambda: command(["dpo", str(file)]), tmp_path / "said.txt")
    while not (tmp_path / "run/checkpoints/step-4").exists() and os.waitpid(child, os.WNOHANG) == (0, 0):
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    assert ended(child) == -signal.SIGKILL
    asked = []
    whole = dpo_run.reference_log_probs

    def noted(model, pairs, **given):
        kept = given["file"].stat().st_mtime_ns
        found = whole(model, pairs, **given)
        asked.append(given["file"].stat().st_mtime_ns == kept)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dpo_run, "reference_log_probs", noted)
        assert command(["dpo", str(file)]) == 0
    assert asked == [True, True]  # what the reference said was found, not computed again
    one, other = (load_file(folder / "run/final/model.safetensors") for folder in (learnt, tmp_path))
    assert all(torch.equal(one[name], other[name]) for name in one)
    lines = [[(line["step"], line["loss"], line["kl"]) for line in read_metrics(f / "run")] for f in (learnt, tmp_path)]
    assert lines[0] == lines[1]


@pytest.mark.parametrize("loss", LOSSES)
def test_the_gradient_is_the_same_however_the_batch_is_cut(learnt: Path, loss: str) -> None:
    """D2, over pairs."""
    data = {"context": 128}  # rows that hold two pairs
    read = recipe(
        learnt, data=data, dpo={"loss": loss} | ({"label_smoothing": 0.1} if loss in ("robust", "conservative") else {})
    )
    pairs = read_data(read).pairs
    assert pairs.num_pairs > 1.5 * len(pairs)
    model, _ = open_policy(read.base)
    pairs.reference = reference_log_probs(model, pairs, others=loss == "kto")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.02)
    objective = partial(preference_loss, loss=read.dpo.loss, settings=Settings(0.1, smoothing=0.1))
    found = []
    for rows in (8, 3, 1):
        model.zero_grad()
        gradient = take_gradient(
            model, pairs.read(range(8)), objective, micro_batch=rows, measures=measures_of(read.dpo.loss)
        )
        found.append([gradient.loss, gradient.norm, *gradient.measures.values()])
        assert gradient.learnt == len(pairs.read(range(8)).numbers)
    # Means of some 20 pairs in float32, added up in another order
    np.testing.assert_allclose(found[1:], [found[0]] * 2, rtol=1e-4, atol=1e-4)


def test_the_reference_is_computed_once_and_again_when_it_must_be(learnt: Path, tmp_path: Path) -> None:
    read = recipe(learnt)
    pairs = read_data(read).pairs
    model, _ = open_policy(read.base)
    given = {"file": tmp_path / "r.safetensors", "made_from": "this"}
    first = reference_log_probs(model, pairs, **given)
    examples = pairs.read(range(len(pairs)))
    direct = answer_log_probs(model, examples)
    # Rows taken eight at a time or all at once: sums in another order
    torch.testing.assert_close(torch.from_numpy(first)[examples.numbers], direct, rtol=1e-5, atol=1e-4)
    with torch.no_grad():
        model.embedding.weight.mul_(1.5)
    assert (reference_log_probs(model, pairs, **given) == first).all()
    assert (reference_log_probs(model, pairs, **{**given, "made_from": "that"}) != first).any()
    given["file"].write_bytes(b"broken")
    assert (reference_log_probs(model, pairs, **given) != first).any()


def test_with_an_adapter_the_reference_is_the_base(learnt: Path, tmp_path: Path) -> None:
    """The adapter is all that is saved, ln 2 is where it begins, and it learns."""
    folder = tmp_path / "with-template"
    save(*open_policy(str(learnt / "base")), folder, about=About(base="nothing"))
    made = content(
        learnt, run=str(tmp_path / "run"), base=str(folder), adapter={"rank": 4, "alpha": 8}, optim={"lr": 0.01}
    )
    _, comparison = learn_preferences(parse_recipe(made, DPORecipe, "recipe"), say=silent)
    lines = read_metrics(tmp_path / "run")
    assert lines[0]["loss"] == pytest.approx(LN2, abs=1e-5)
    assert lines[-1]["validation_rewards/accuracies"] > 0.9
    assert (tmp_path / "run/final/adapter_model.safetensors").exists() and comparison is not None


def test_answers_to_other_prompts(learnt: Path) -> None:
    """KTO: the prompt of a pair with the better answer of another one."""
    pairs = read_data(recipe(learnt)).pairs
    numbers = np.arange(pairs.num_pairs)
    others = partner(pairs, numbers)
    assert all(pairs.prompt(one) != pairs.prompt(other) for one, other in zip(numbers, others, strict=True))
    examples = mismatched(pairs, numbers[:5])
    for row, (number, other) in enumerate(zip(numbers[:5], others[:5], strict=True)):
        (own, said), (theirs, meant) = pairs.answers(int(number))[0], pairs.answers(int(other))[0]
        expected = [*own[: said.argmax()], *theirs[meant.argmax() :]]
        assert examples.tokens[row, : len(expected)].tolist() == expected
        assert int((examples.documents[row] >= 0).sum()) == len(expected)
        targets = examples.targets[row][examples.targets[row] >= 0].tolist()
        assert targets == theirs[meant.argmax() :].tolist()


def test_the_other_answer_is_to_another_prompt(learnt: Path, tmp_path: Path) -> None:
    """Of rankings, every prompt has several pairs."""
    several = [{"prompt": f"Q{n}", "ranked": ["a", "b", "c", "d"]} for n in range(3)]
    data = {"train": str(write_lines(tmp_path / "ranked.jsonl", several)), "validation_fraction": 0}
    pairs = read_data(recipe(learnt, run=str(tmp_path / "run"), data=data, train={"batch": 1})).pairs
    numbers = np.arange(pairs.num_pairs)
    prompts = [pairs.prompt(int(number)) for number in numbers]
    assert all(prompts[one] != prompts[other] for one, other in zip(numbers, partner(pairs, numbers), strict=True))


def test_kto_measures_its_distance_over_the_whole_batch(learnt: Path, tmp_path: Path) -> None:
    kto = {"loss": "kto", "beta": 0.5}
    made = content(learnt, run=str(tmp_path / "run"), dpo=kto, optim={"lr": 0.002, "schedule": "constant"})
    learn_preferences(parse_recipe(made, DPORecipe, "recipe"), say=silent)
    lines = read_metrics(tmp_path / "run")
    assert lines[0]["kl"] == pytest.approx(0, abs=1e-4) and lines[0]["loss"] == pytest.approx(0.5, abs=1e-4)
    assert lines[-1]["validation_rewards/accuracies"] == 1
    train = {"micro_batch": 1, "steps": 4}
    parted = content(
        learnt, run=str(tmp_path / "parted"), dpo=kto, optim={"lr": 0.002, "schedule": "constant"}, train=train
    )
    learn_preferences(parse_recipe(parted, DPORecipe, "recipe"), say=silent)
    for one, other in zip(lines, read_metrics(tmp_path / "parted"), strict=False):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)  # 4 steps from sums added up in another order


@pytest.mark.parametrize("beta", [0, -0.1])
def test_a_beta_that_is_not_above_0_is_refused(learnt: Path, beta: float) -> None:
    with pytest.raises(InputError, match=r"dpo.beta: .* is not above 0"):
        recipe(learnt, dpo={"beta": beta})


@pytest.mark.parametrize(
    ("dpo", "sentence"),
    [
        ({"loss": "sigmoid", "label_smoothing": 0.1}, "label_smoothing is of the loss robust or conservative"),
        ({"loss": "ipo", "margin": 1.0}, "margin is of the loss simpo"),
        ({"loss": "dpo"}, "sigmoid"),
        ({"loss": "robust"}, "robust without label_smoothing is sigmoid"),
        ({"loss": "robust", "label_smoothing": 0.5}, "less than 0.5"),
    ],
)
def test_what_the_loss_has_not_is_refused(learnt: Path, dpo: dict, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        recipe(learnt, dpo=dpo)


@pytest.mark.parametrize(
    ("record", "context", "sentence"),
    [
        ({"prompt": "Q", "chosen": " ", "rejected": "no"}, 64, "'chosen' is empty"),
        ({"prompt": "Q", "chosen": "yes", "rejected": ""}, 64, "'rejected' is empty"),
        ({"prompt": "Q", "chosen": "yes", "rejected": "yes"}, 64, "are equal"),
        ({"prompt": "long " * 30, "chosen": "a", "rejected": "b"}, 64, "the prompt alone has [0-9]+ tokens"),
        ({"messages": [{"role": "user", "content": "Q"}]}, 64, "expected preferences"),
        ({"prompt": "Q", "chosen": "a", "rejected": "b"}, 64, "a single prompt"),
        ({"prompt": "Q", "chosen": "a", "rejected": "b"}, 4096, "holds at most 128 tokens"),
    ],
)
def test_data_that_cannot_be_used_are_said_before_the_model_is_loaded(
    learnt: Path, tmp_path: Path, record: dict, context: int, sentence: str
) -> None:
    file = write_lines(tmp_path / "bad.jsonl", [record])
    fraction = 0.2 if "single" in sentence else 0
    made = recipe(
        learnt,
        run=str(tmp_path / "run"),
        data={"train": str(file), "context": context, "validation_fraction": fraction},
    )
    with pytest.MonkeyPatch.context() as patch, pytest.raises(InputError, match=sentence):
        patch.setattr(dpo_run, "open_policy", lambda *_, **__: pytest.fail("the model was loaded"))
        learn_preferences(made, say=silent)


def test_what_is_left_out_is_said_by_reason(learnt: Path, tmp_path: Path) -> None:
    """A3."""
    good = [{"prompt": f"Q{n}", "chosen": "a", "rejected": "b"} for n in range(60)]
    bad = [
        {"prompt": "long " * 30, "chosen": "a", "rejected": "b"},
        {"prompt": "Q", "chosen": "", "rejected": "b"},
        good[0],
    ]
    file = write_lines(tmp_path / "pairs.jsonl", good + bad)
    data = {"train": str(file), "skip_bad": True, "too_long": "drop", "validation_fraction": 0}
    counts = read_data(recipe(learnt, run=str(tmp_path / "run"), data=data)).counts
    assert +counts == {
        "kept: preferences": 61,
        "dropped: empty text": 1,
        "dropped: equal to an earlier one": 1,
        "pairs whose prompt alone exceeds the context": 1,
    }


def test_the_runs_own_log_probabilities_are_those_of_transformers(learnt: Path) -> None:
    """The saved model in transformers, each answer by itself: what the last evaluation measured."""
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(learnt / "run/final").eval()
    model, _ = pellucid.load(learnt / "run", dtype="float32")
    held = read_data(recipe(learnt)).held
    assert held is not None
    examples = held.read(range(len(held)))
    with torch.no_grad():
        found = compare_answers(model, examples)
        for place, number in enumerate(examples.numbers.tolist()):
            for (ids, said), ours in zip(held.answers(number), (found.chosen, found.rejected), strict=True):
                tokens = torch.tensor(ids)[None]
                log_p = theirs(tokens).logits[0, :-1].log_softmax(-1).gather(-1, tokens[0, 1:, None])[:, 0]
                # Up to 8 log-probabilities from logits that are right within some 1e-5
                torch.testing.assert_close(ours[place], log_p[torch.tensor(said[1:])].sum(), rtol=1e-4, atol=1e-3)


def test_the_beta_of_simpo_is_its_own_where_it_is_not_given(learnt: Path) -> None:
    given = [{"loss": "simpo"}, {"loss": "simpo", "beta": 3.0}, {"loss": "ipo"}]
    assert [recipe(learnt, dpo=one).dpo.settings.beta for one in given] == [2.0, 3.0, 0.1]


def test_a_base_that_changed_is_another_reference(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"1")
    before = files_of(str(tmp_path))
    os.utime(tmp_path / "model.safetensors", ns=(1, 1))
    assert len(before) == 2 and files_of(str(tmp_path)) != before


def test_a_loss_with_a_reference_needs_one(learnt: Path) -> None:
    read = recipe(learnt)
    examples = read_data(read).pairs.read(range(1))
    model, _ = open_policy(read.base)
    assert "kl" not in preference_loss(model, examples, loss="simpo", settings=Settings()).sums
    with pytest.raises(ValueError, match="needs what the reference says"):
        preference_loss(model, examples, loss="sigmoid", settings=Settings())
