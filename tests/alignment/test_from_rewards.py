"""GRPO and PPO from the recipe to the report: they reach a known reward, begin as they must, and can be killed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import pellucid
from pellucid.alignment import grpo, playing, rollout_run
from pellucid.alignment.grpo import train_grpo
from pellucid.alignment.grpo_recipe import GRPORecipe
from pellucid.alignment.policy import open_policy
from pellucid.alignment.ppo import train_ppo
from pellucid.alignment.ppo_recipe import PPORecipe
from pellucid.alignment.updates import averaged
from pellucid.checkpoints.load import load_classifier
from pellucid.cli.app import run as command
from pellucid.errors import InputError, PellucidError
from pellucid.models.adapters import adapter_names
from pellucid.training import loop
from pellucid.training.metrics import read_metrics
from pellucid.training.ranks import Ranks
from pellucid.training.recipe import parse_recipe
from tests.alignment import toy
from tests.alignment.chats import write_lines
from tests.alignment.toy import content

pytestmark = pytest.mark.usefixtures("one_thread")

METHODS = ("grpo", "ppo")
WATCHED = {
    "reward", "reward_std", "answer_tokens", "answers_ended", "val/ratio", "policy/approxkl_avg",
    "policy/clipfrac_avg", "objective/entropy", "objective/kl", "rollout/largest_ratio_error",
}  # fmt: skip
OF_PPO = {
    "objective/kl_coef", "objective/scores", "objective/non_score_reward", "objective/rlhf_reward", "loss/policy_avg",
    "loss/value_avg", "val/clipfrac_avg", "val/explained_variance",
}  # fmt: skip


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No pictures; and the toy's counter begins anew."""
    monkeypatch.setattr(loop, "write_curves", lambda *_: None)
    toy.calls.clear()
    toy.fail_at.clear()
    yield


def learn(
    method: str, folder: Path, say: Callable[[str], None] = lambda _: None, **changes: Any
) -> list[dict[str, Any]]:
    """The metrics of a run."""
    given = content(folder, **changes)
    if method == "grpo":
        train_grpo(parse_recipe(given, GRPORecipe, "recipe"), say=say)
    else:
        train_ppo(parse_recipe(given, PPORecipe, "recipe"), say=say)
    return read_metrics(Path(given["run"]))


@pytest.mark.parametrize("method", METHODS)
def test_it_reaches_a_known_reward(method: str, tmp_path: Path) -> None:
    """Promise A4. By chance 26 of 263 tokens are right; the bound is far below where 20 steps end, and far above."""
    lines: list[str] = []
    found = learn(method, tmp_path, lines.append, **({"ppo": {"epochs": 2}} if method == "ppo" else {}))
    rewards = [line["reward"] for line in found]
    assert len(rewards) == 20
    assert rewards[0] < 0.25
    assert sum(rewards[-4:]) / 4 > 0.5
    assert set(found[0]) >= (WATCHED | OF_PPO if method == "ppo" else WATCHED)
    assert sum("four numbers to watch" in line for line in lines) == 1
    assert sum("ratio is 1" in line for line in lines) == 1
    samples = [json.loads(line) for line in (tmp_path / "run/samples.jsonl").read_text().splitlines()]
    assert [one["step"] for one in samples] == [step for step in range(1, 21) for _ in range(8)]
    assert samples[0].keys() == {"step", "prompt", "text", "reward"}
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert len(report["answers"]) == 3 and report["changes"][-1]["relative"] > 0
    model, _ = pellucid.load(tmp_path / "run")
    assert type(model).__name__ == "Decoder"
    if method == "ppo":
        value, _ = load_classifier(tmp_path / "run/final/value")
        assert value.labels == 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("temperature", "top_p"), [(0.6, 1.0), (1.3, 0.9)])
def test_the_first_step_begins_at_known_values(
    method: str, temperature: float, top_p: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promises A1 and A2: the ratio is 1, KL and policy loss are 0, within what float32 can tell."""
    if method == "grpo":  # two updates: what is learnt from was scored before the first, by another forward
        changes: dict[str, Any] = {"grpo": {"beta": 0.1, "updates": 2}}
        monkeypatch.setattr(grpo, "averaged", lambda gradients: averaged(gradients[:1]))
    else:
        changes = {"ppo": {"epochs": 1}}
    drawn = {"temperature": temperature, "top_p": top_p, "answers": 4, "max_tokens": 8}
    first, second = learn(method, tmp_path, train={"steps": 2, "batch": 4}, rollouts=drawn, **changes)
    for line in (first, second):
        assert 0 < line["rollout/largest_ratio_error"] < 1e-5 or line["rollout/largest_ratio_error"] == 0
        assert line["val/ratio"] == pytest.approx(1, abs=1e-5)
        assert line["policy/clipfrac_avg"] == 0
    assert abs(first["objective/kl"]) < 8 * 1e-5
    assert abs(first["loss/policy_avg" if method == "ppo" else "loss"]) < 1e-5


@pytest.mark.parametrize("method", METHODS)
def test_killed_and_resumed(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit what a run left alone does. The reward fails in the sixth step, two steps after a checkpoint."""
    changes: dict[str, Any] = {"train": {"steps": 8, "batch": 4, "save_every": 4, "evaluate_every": 3}}
    changes["data"] = {"validation": str(tmp_path / "prompts.jsonl")}
    if method == "ppo":
        changes["ppo"] = {"epochs": 2, "minibatches": 2, "kl_target": 0.01, "value": None}
    else:
        changes["grpo"] = {"updates": 2, "minibatches": 2, "beta": 0.05}
    changes["rollouts"] = {"answers": 4, "top_p": 0.95}
    whole = learn(method, tmp_path, run=str(tmp_path / "whole"), **changes)
    toy.calls.clear()
    toy.fail_at.add(7)  # a call a step, and one for the validation prompts after the third
    with pytest.raises(
        PellucidError, match=r"the reward tests\.alignment\.toy:letters failed on .* \(RuntimeError: out"
    ):
        toy.fail_at.update(range(7, 200))
        learn(method, tmp_path, run=str(tmp_path / "killed"), **changes)
    toy.fail_at.clear()
    resumed = learn(method, tmp_path, run=str(tmp_path / "killed"), **changes)
    timed = {"seconds", "reading", "tokens_per_second", "rollout_seconds", "rollout_tokens_per_second", "mfu"}
    assert [without(line, timed) for line in resumed] == [without(line, timed) for line in whole]
    assert [one["step"] for one in whole if "validation_reward" in one] == [3, 6, 8]
    for name in ("model.safetensors", *(["value/model.safetensors"] if method == "ppo" else [])):
        assert (tmp_path / "killed/final" / name).read_bytes() == (tmp_path / "whole/final" / name).read_bytes()
    kept = (tmp_path / "killed/samples.jsonl").read_text()
    assert kept == (tmp_path / "whole/samples.jsonl").read_text()


def without(line: dict[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name not in names}


@pytest.mark.parametrize("method", METHODS)
def test_with_an_adapter(method: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"grpo": {"beta": 0.1}} if method == "grpo" else {"ppo": {"epochs": 1}}
    changes |= {"adapter": {"rank": 4}, "data": {"chat": False}, "train": {"steps": 6, "batch": 4}}
    toy_base = content(tmp_path)["base"]
    with_template(Path(toy_base))
    found = learn(method, tmp_path, **changes, optim={"lr": 0.02})
    assert abs(found[0]["objective/kl"]) < 6 * 1e-5 < found[-1]["objective/kl"]
    assert all(line["rollout/largest_ratio_error"] < 1e-5 for line in found)
    assert (tmp_path / "run/final/adapter_config.json").is_file()
    model, _ = pellucid.load(tmp_path / "run/final")
    assert adapter_names(model)


def with_template(base: Path) -> None:
    """Gives the toy's base a chat template, and the control tokens that belong to it."""
    from pellucid.alignment.templates import give_template
    from pellucid.checkpoints.save import About, save

    model, tokenizer = pellucid.load(base)
    save(model, give_template(model, tokenizer), base, about=About(base="nothing"))


@pytest.mark.parametrize("normalise", ["dr_grpo", "dapo"])
def test_other_normalisations(normalise: str, tmp_path: Path) -> None:
    section = {"normalise": normalise, "overlong": "punish" if normalise == "dapo" else "mask", "overlong_buffer": 2}
    found = learn("grpo", tmp_path, grpo=section, train={"steps": 3, "batch": 4, "micro_batch": 1})
    learns = [line["learnt"] > 0 for line in found]  # with `mask`, not where no answer has ended
    assert [line["gradient_norm"] > 0 for line in found] == learns and any(learns)
    counted = [line["learnt"] for line in found]
    assert counted[0] == (
        round(found[0]["answer_tokens"] * 32) if normalise == "dapo" else found[0]["answers_ended"] * 32
    )


def test_micro_batches_change_nothing(tmp_path: Path) -> None:
    both = [
        learn("ppo", tmp_path, run=str(tmp_path / name), train={"steps": 2, "batch": 4, "micro_batch": micro})
        for name, micro in (("whole", None), ("parts", 2))
    ]
    (one, later), (other, _) = both  # the same answers in the first step alone
    assert other["loss"] == pytest.approx(one["loss"], abs=1e-5)
    assert other["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=1e-3)
    assert other["reward"] == one["reward"] and later["loss"] != one["loss"]


def test_it_stops_updating_where_the_policy_has_moved_too_far(tmp_path: Path) -> None:
    changes = {"epochs": 6, "stop_kl": 1e-9}
    found = learn("ppo", tmp_path, train={"steps": 2, "batch": 4}, ppo=changes)
    assert [line["updates"] for line in found] == [2, 2]  # the first is on policy, the second is not


@pytest.mark.parametrize(
    ("method", "changes", "said"),
    [
        ("grpo", {"rewards": "exakt"}, "did you mean 'exact'"),
        ("grpo", {"rewards": []}, "nothing says what an answer earns"),
        ("grpo", {"rollouts": {"answers": 1}}, "GRPO compares the answers"),
        ("grpo", {"rollouts": {"max_tokens": 48}}, "leaves no room for a prompt"),
        ("grpo", {"rollouts": {"temperature": 0}}, "rollouts.temperature = 0"),
        ("grpo", {"rollouts": {"max_tokens": 44}}, "the prompt has"),
        ("grpo", {"grpo": {"beta": -1}}, "grpo.beta = -1"),
        ("grpo", {"grpo": {"kl": "k4"}}, "grpo.kl = 'k4'"),
        ("grpo", {"adapter": {"rank": 4, "dropout": 0.1}}, "adapter.dropout must be 0"),
        ("grpo", {"data": {"context": 4096}}, "holds at most 128 tokens"),
        ("grpo", {"report": {"prompts": ["long " * 99]}}, "the context holds 128"),
        ("grpo", {"train": {"batch": 25}}, "do not fill a batch of 25"),
        ("grpo", {"reward_model": "{folder}/base"}, "give a reward model"),
        ("ppo", {"ppo": {"beta": 0}}, "ppo.beta = 0"),
        ("ppo", {"ppo": {"value": "{folder}/base"}}, "give a reward model"),
        ("ppo", {"data": {"train": "{folder}/none.jsonl"}}, "none.jsonl:2: the fields are 'question'"),
        ("ppo", {"data": {"train": "{folder}/empty.jsonl"}}, "empty.jsonl:1: 'prompt' is empty"),
    ],
)
def test_bad_input(method: str, changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    write_lines(tmp_path / "none.jsonl", [{"prompt": "p"}, {"question": "q"}])
    write_lines(tmp_path / "empty.jsonl", [{"prompt": " "}])
    filled = json.loads(json.dumps(changes).replace("{folder}", str(tmp_path)))
    with pytest.raises(InputError) as error:
        learn(method, tmp_path, **filled)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_reward_model_of_another_vocabulary(tmp_path: Path) -> None:
    from pellucid.checkpoints.save import About, save
    from pellucid.models.classifier import Classifier
    from tests.checkpoints.tiny import CONFIGS, tiny_tokenizer

    save(Classifier(CONFIGS["llama"]), tiny_tokenizer(), tmp_path / "scores", about=About(base="nothing"))
    with pytest.raises(InputError, match="different vocabularies"):
        learn("ppo", tmp_path, reward_model=str(tmp_path / "scores"))


def test_a_reward_model_that_values_too(tmp_path: Path) -> None:
    from pellucid.checkpoints.save import About, save
    from pellucid.models.classifier import Classifier

    policy, tokenizer = open_policy(content(tmp_path)["base"])
    for name, most in (("scores", 48), ("short", 40)):
        model = Classifier(policy.config.model_copy(update={"max_positions": most}), seed=2)
        save(model, tokenizer, tmp_path / name, about=About(base="nothing"))
    small: dict[str, Any] = {"train": {"steps": 1, "batch": 2}, "ppo": {"epochs": 1, "value": str(tmp_path / "scores")}}
    [line] = learn("ppo", tmp_path, reward_model=str(tmp_path / "scores"), **small)
    assert line["reward"] == pytest.approx(line["rewards/reward_model"] + line["rewards/tests.alignment.toy:letters"])
    for changes in ({"reward_model": str(tmp_path / "short")}, {"ppo": {"value": str(tmp_path / "short")}}):
        with pytest.raises(InputError, match=r"data\.context = 48: .*short reads at most 40"):
            learn("ppo", tmp_path, run=str(tmp_path / "other"), **changes)


def test_the_value_model_is_looked_after_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its blocks are computed again for the gradient, and what is not finite in it is named, with where to look."""
    known = loop.Trainer.descend
    kept: list[Any] = []

    def poisoned(self: loop.Trainer, *given: Any, **named: Any) -> Any:
        kept.extend(self._trained())
        kept[1].score.weight.data[0, 0] = float("nan")
        return known(self, *given, **named)

    monkeypatch.setattr(loop.Trainer, "descend", poisoned)
    again = {"steps": 1, "batch": 2, "activation_checkpointing": True}
    with pytest.raises(PellucidError, match=r"first seen in the weights score\.weight.*samples\.jsonl"):
        learn("ppo", tmp_path, train=again)
    assert all("forward" in vars(model.blocks[0]) for model in kept)


def test_parts_that_there_are(tmp_path: Path) -> None:
    """Four answers in one packed row are one update, and not four of which three learn nothing."""
    lines: list[str] = []
    changes: dict[str, Any] = {"data": {"context": 128}, "rollouts": {"answers": 2}, "train": {"steps": 2, "batch": 2}}
    found = learn("ppo", tmp_path, lines.append, ppo={"epochs": 1, "minibatches": 4}, **changes)
    assert [line["updates"] for line in found] == [1, 1]
    assert found[0]["val/ratio"] == pytest.approx(1, abs=1e-5)
    assert sum("1 updates and not 4" in line for line in lines) == 1


def test_groups_that_are_all_equal() -> None:
    """0.1 eight times has a standard deviation of 8e-9."""
    groups = torch.tensor([[0.1] * 8, [1 / 3] * 8, [0.7] * 8, [0.7] * 7 + [0.1]])
    assert grpo.all_equal(groups, Ranks()) == 0.75


def test_conversations_give_prompts_and_answers(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "Delby."}]
    write_lines(tmp_path / "chats.jsonl", [{"messages": turns, "id": 7}])
    recipe = parse_recipe(content(tmp_path, data={"train": str(tmp_path / "chats.jsonl"), "chat": True},
                                  train={"batch": 1, "steps": 1}), GRPORecipe, "recipe")  # fmt: skip
    data = rollout_run.read_data(recipe)
    [prompt] = data.prompts.prompts
    assert prompt.given == turns[:1] and prompt.columns == {"answer": "Delby.", "id": 7}
    assert data.tokenizer.decode(prompt.ids).endswith("Where?<|im_end|>\n<|im_start|>assistant\n")
    assert playing.said(prompt.given, "Orme.") == [{"role": "assistant", "content": "Orme."}]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import yaml

    for method in METHODS:
        given = content(tmp_path, train={"steps": 1, "batch": 2}, run=str(tmp_path / method))
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(given))
        assert command([method, str(tmp_path / "recipe.yaml"), "rollouts.answers=2"]) == 0
        printed = capsys.readouterr()
        assert f"{tmp_path / method}: 1 steps" in printed.out and "before" in printed.out
        assert command([method, str(tmp_path / "recipe.yaml"), "rollout.answers=2"]) == 2
        assert "there is no field 'rollout'" in capsys.readouterr().err


def test_torch_draws_nothing_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All randomness of a step is a function of the seed and its number: the global generator plays no part."""
    first = learn("grpo", tmp_path, train={"steps": 1, "batch": 2})
    torch.manual_seed(99)
    monkeypatch.setattr(torch, "manual_seed", lambda _: None)
    again = learn("grpo", tmp_path, run=str(tmp_path / "again"), train={"steps": 1, "batch": 2})
    assert first[0]["reward"] == again[0]["reward"] and first[0]["gradient_norm"] == again[0]["gradient_norm"]
