"""Reward models: the loss by hand and against TRL, a run that learns, and what it writes."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from torch import Tensor
from trl import RewardConfig, RewardTrainer

from pellucid.alignment.reward import (
    MEASURES,
    bradley_terry,
    centring,
    read_data,
    reward_loss,
    train_reward_model,
    with_padding,
)
from pellucid.alignment.reward_model import RewardModel
from pellucid.alignment.reward_recipe import RewardRecipe
from pellucid.alignment.templates import with_template
from pellucid.checkpoints.save import save
from pellucid.cli.app import run as command
from pellucid.data.pairs import Pairs
from pellucid.data.rankings import Rankings
from pellucid.errors import InputError
from pellucid.models.classifier import Classifier
from pellucid.models.config import ModelConfig
from pellucid.models.decoder import Decoder
from pellucid.training import loop
from pellucid.training.metrics import read_metrics
from pellucid.training.recipe import parse_recipe
from pellucid.training.step import take_gradient
from tests.alignment.chats import base_tokenizer, save_base, write_lines
from tests.alignment.preferences import about_towns, ranked
from tests.checkpoints.tiny import random_model, tiny_tokenizer
from tests.data.made import in_memory

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_losses_are_those_of_the_papers() -> None:
    """Worked by hand: -log sigmoid(2 - 1) = log(1 + e^-1) = 0.313262; with a margin of 1, log 2."""
    chosen, rejected = torch.tensor([2.0, 0.0]), torch.tensor([1.0, 0.0])
    assert bradley_terry(chosen, rejected).tolist() == pytest.approx([0.313262, math.log(2)], abs=1e-6)
    assert bradley_terry(chosen, rejected, 1.0)[0].item() == pytest.approx(math.log(2), abs=1e-6)
    margins = bradley_terry(chosen, rejected, torch.tensor([1.0, 0.0]))
    assert margins.tolist() == pytest.approx([math.log(2)] * 2, abs=1e-6)
    assert centring(chosen, rejected).tolist() == [9.0, 0.0]


def rows_of(answers: list[list[list[int]]], pairs: list[list[tuple[int, int]]]) -> Rankings:
    """Rankings of token ids: of each prompt its answers, and its pairs."""
    documents, masks = [], []
    for number, (several, compared) in enumerate(zip(answers, pairs, strict=True)):
        for pair in compared:
            for place in pair:
                documents.append([10 + number, 50, *several[place]])
                masks.append([False, False, *[True] * len(several[place])])
    return Rankings(Pairs(in_memory(documents, masks), 16, seed=0), seed=0, shuffle=False)


SHAPE: dict[str, Any] = {
    "vocab_size": 272, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 48, "max_positions": 64,
}  # fmt: skip


def small() -> Classifier:
    return Classifier.of(random_model(ModelConfig(**SHAPE))).train()


def test_loss_and_gradient_equal_trl(tmp_path: Path) -> None:
    """Pairs of their own prompts, padded there and packed here; margin and centring on. 1e-5 relative in float32."""
    answers = [[[100 + 7 * n, 101 + n, 263][: 1 + n % 3], [120 + n, 121]] for n in range(4)]
    ours = small()
    save(ours, tiny_tokenizer(), tmp_path / "model")
    rows = rows_of(answers, [[(0, 1)]] * 4)
    examples = rows.read(range(len(rows)))
    gradient = take_gradient(ours, examples, reward_loss(0.0, 0.25), measures=MEASURES)
    assert gradient.learnt == 4

    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "model", dtype=torch.float32)
    trainer = RewardTrainer.__new__(RewardTrainer)  # its loss alone: making one wants a data set and a folder
    trainer.model, trainer.args = (
        theirs.train(),
        RewardConfig(output_dir=str(tmp_path), center_rewards_coefficient=0.25, report_to=[], use_cpu=True, bf16=False),
    )
    trainer._metrics, trainer._total_train_tokens, trainer._tp_size = {"train": Counted()}, 0, 1
    trainer.accelerator = Alone()
    documents = [[10 + n, 50, *answers[n][which]] for which in (0, 1) for n in range(4)]
    padded = [torch.tensor(ids) for ids in documents]
    inputs = {
        "input_ids": torch.nn.utils.rnn.pad_sequence(padded, batch_first=True, padding_value=262),
        "attention_mask": torch.nn.utils.rnn.pad_sequence([torch.ones_like(ids) for ids in padded], batch_first=True),
    }
    loss = trainer.compute_loss(theirs, inputs)
    loss.backward()
    assert gradient.loss == pytest.approx(loss.item(), rel=1e-5)
    assert gradient.measures["rewards/margins"] == pytest.approx(trainer._metrics["train"]["margin"][0], rel=1e-4)
    assert gradient.measures["rewards/accuracies"] == trainer._metrics["train"]["accuracy"][0]
    named = dict(theirs.named_parameters())
    for name, mine in (
        ("score.weight", ours.score.weight),
        ("model.embed_tokens.weight", ours.embedding.weight),
        ("model.layers.0.self_attn.q_proj.weight", ours.get_parameter("blocks.0.attention.query.weight")),
        ("model.layers.1.mlp.down_proj.weight", ours.get_parameter("blocks.1.feed_forward.down.weight")),
    ):
        other = named[name].grad
        assert mine.grad is not None and other is not None
        assert float((mine.grad - other).norm()) <= 1e-5 * float(other.norm()), name


class Alone:
    """The one process of accelerate's, as far as the loss asks for it."""

    def gather(self, values: Tensor) -> Tensor:
        return values

    gather_for_metrics = gather


class Counted(dict[str, Any]):
    def __missing__(self, name: str) -> list[float]:
        return self.setdefault(name, [])


def test_all_pairs_of_a_prompt_count_as_one_and_each_answer_is_scored_once() -> None:
    """Ouyang et al. 2022, equation 1: the mean over the pairs of a prompt; the gradient is that of its autograd."""
    answers = [[[100], [101, 102], [103]], [[110], [111]]]
    rows = rows_of(answers, [[(0, 1), (0, 2), (1, 2)], [(1, 0)]])
    examples = rows.read([0])
    assert len(examples.ends) == 5
    model = small()
    found = take_gradient(model, examples, reward_loss())
    packed = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()

    def reward(prompt: int, answer: int) -> Tensor:
        return model.scores(torch.tensor([[10 + prompt, 50, *answers[prompt][answer]]]))[0, -1]

    first = sum(bradley_terry(reward(0, i), reward(0, j)) for i, j in ((0, 1), (0, 2), (1, 2))) / 3
    loss = (first + bradley_terry(reward(1, 1), reward(1, 0))) / 2
    loss.backward()
    assert found.learnt == 2 and found.loss == pytest.approx(loss.item(), rel=1e-5)
    alone = [p.grad for p in model.parameters() if p.grad is not None]
    for one, other in zip(packed, alone, strict=True):
        assert float((one - other).norm()) <= 1e-5 * float(other.norm())


@pytest.mark.parametrize("micro_batch", [1, 2])
def test_a_batch_in_parts_gives_the_same_gradient(micro_batch: int) -> None:
    """Promise D2: prompts with one pair and with three, in rows that are taken one or two at a time."""
    answers = [[[100 + n], [110 + n, 111], [120 + n] * 5] for n in range(6)]
    rows = rows_of(answers, [[(0, 1), (0, 2), (1, 2)] if n % 2 else [(2, 0)] for n in range(6)])
    assert len(rows) > 2
    found = []
    for size in (None, micro_batch):
        model = small()
        gradient = take_gradient(
            model, rows.read(range(len(rows))), reward_loss(0.5, 0.1), micro_batch=size, measures=MEASURES
        )
        found.append((gradient, [p.grad for p in model.parameters() if p.grad is not None]))
    (whole, one), (parts, other) = found
    assert parts.learnt == whole.learnt == 6 and parts.loss == pytest.approx(whole.loss, rel=1e-5)
    assert parts.measures == pytest.approx(whole.measures, rel=1e-4, abs=1e-5)
    for a, b in zip(one, other, strict=True):
        assert float((a - b).norm()) <= 1e-5 * float(a.norm()) + 1e-7


def content(folder: Path, **changes: Any) -> dict[str, Any]:
    """A recipe in `folder`, which gets the data and the base."""
    if not (folder / "base").exists():
        save_base(folder / "base")
        write_lines(folder / "pairs.jsonl", about_towns(180))
    return {
        "run": str(folder / "run"),
        "base": str(folder / "base"),
        "precision": "float32",
        "data": {"train": str(folder / "pairs.jsonl"), "context": 96, "validation_fraction": 0.2},
        "optim": {"lr": 0.003, "warmup": 5},
        "train": {"steps": 30, "batch": 8, "save_every": 15},
        **changes,
    }


def parsed(folder: Path, **changes: Any) -> RewardRecipe:
    return parse_recipe(content(folder, **changes), RewardRecipe, "recipe")


@pytest.fixture(scope="module", autouse=True)
def no_curves() -> Iterator[None]:
    """Pictures of runs take longer than runs this short."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "write_curves", lambda *_: None)
        yield


def silent(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that has ended."""
    folder = tmp_path_factory.mktemp("learnt")
    outcome, report = train_reward_model(parsed(folder), say=silent)
    assert outcome.steps == 30 and report is not None
    return folder


def test_it_learns_which_answers_are_better(learnt: Path) -> None:
    report = json.loads((learnt / "run/report.json").read_text())
    assert report["pairs"] == 36 and report["accuracy"] > 0.9 and report["loss"] < 0.4
    assert report["interval"][0] < report["accuracy"] <= report["interval"][1]
    assert sum(one["pairs"] for one in report["bins"]) == 36
    assert len(report["shown"]) == 3 and report["shown"][0]["prompt"].startswith("<|im_start|>user")
    assert [one["preferred"] for one in report["shown"][0]["answers"]] == [1, 0]
    assert report["changes"][-1]["part"] == "all" and report["changes"][-1]["relative"] > 0.001
    lines = read_metrics(learnt / "run")
    assert lines[0]["rewards/margins"] == pytest.approx(
        lines[0]["rewards/chosen"] - lines[0]["rewards/rejected"], abs=1e-6
    )
    assert "36 held-out pairs" in (learnt / "run/report.md").read_text()
    assert "<svg" in (learnt / "run/reward.svg").read_text()[:10]


def test_the_run_is_a_reward_model_and_transformers_opens_it(learnt: Path) -> None:
    judge = RewardModel.load(learnt / "run")
    pair = about_towns(1)[0]
    messages = [
        [{"role": "user", "content": pair["prompt"]}, {"role": "assistant", "content": pair[which]}]
        for which in ("chosen", "rejected")
    ]
    better, worse = judge.score_messages(messages)
    assert better > worse
    tokenizer = transformers.AutoTokenizer.from_pretrained(learnt / "run/final")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(learnt / "run/final", dtype=torch.float32)
    texts = [tokenizer.apply_chat_template(one, tokenize=False).rstrip("\n") for one in messages]
    batch = tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False)
    with torch.no_grad():
        scores = theirs(**batch).logits[:, 0].tolist()
    assert scores == pytest.approx([better, worse], abs=1e-4)


def test_a_run_that_is_stopped_goes_on_bit_for_bit(learnt: Path, tmp_path: Path) -> None:
    content(tmp_path)
    (tmp_path / "base").rename(tmp_path / "aside")
    (tmp_path / "base").symlink_to(learnt / "base")
    write_lines(tmp_path / "pairs.jsonl", about_towns(180))
    recipe = parsed(tmp_path)
    train_reward_model(recipe, say=silent)
    for part in ("checkpoints/step-30", "final"):
        shutil.rmtree(tmp_path / "run" / part)
    train_reward_model(recipe, say=silent)
    for one, other in zip(
        RewardModel.load(tmp_path / "run").model.parameters(),
        RewardModel.load(learnt / "run").model.parameters(),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_with_an_adapter_the_end_is_a_whole_model(tmp_path: Path) -> None:
    recipe = content(tmp_path)
    save(
        Decoder(ModelConfig(**SHAPE | {"max_positions": 128}), seed=1),
        with_template(base_tokenizer()),
        tmp_path / "base",
    )
    recipe |= {
        "adapter": {"rank": 4, "alpha": 8},
        "optim": {"lr": 0.01, "warmup": 2},
        "train": {"steps": 6, "batch": 8, "save_every": 3},
    }
    said: list[str] = []
    train_reward_model(parse_recipe(recipe, RewardRecipe, "recipe"), say=said.append)
    assert any("LoRA of rank 4" in line for line in said) and any("the adapter is merged" in line for line in said)
    files = {path.name for path in (tmp_path / "run/checkpoints/step-6").iterdir()}
    assert {"adapter_model.safetensors", "score.safetensors"} <= files and "model.safetensors" not in files
    whole = RewardModel.load(tmp_path / "run").score([[1, 2, 3]])
    assert not list((tmp_path / "run/final").glob("adapter*"))
    for part in ("checkpoints/step-6", "final"):  # again from the middle: the adapter and the head come back
        shutil.rmtree(tmp_path / "run" / part)
    train_reward_model(parse_recipe(recipe, RewardRecipe, "recipe"), say=silent)
    assert RewardModel.load(tmp_path / "run").score([[1, 2, 3]]) == whole


def test_a_base_in_four_bits_is_widened_at_the_end(tmp_path: Path) -> None:
    """The layers too that the adapter does not touch."""
    base = Decoder(ModelConfig(**SHAPE | {"max_positions": 128, "hidden_size": 64}), seed=1)
    save(base, with_template(base_tokenizer()), tmp_path / "base")
    write_lines(tmp_path / "pairs.jsonl", about_towns(40))
    recipe = content(tmp_path) | {"optim": {"warmup": 0}, "train": {"steps": 1, "batch": 2}}
    recipe |= {"adapter": {"rank": 2, "alpha": 4, "quantize": "nf4", "targets": ["q_proj"]}}
    _, report = train_reward_model(parse_recipe(recipe, RewardRecipe, "recipe"), say=silent)
    assert report is not None and not RewardModel.load(tmp_path / "run").model.quantised


def test_rankings_are_learnt_from_too(tmp_path: Path) -> None:
    write_lines(tmp_path / "ranked.jsonl", ranked())
    recipe = parsed(tmp_path, data={"train": str(tmp_path / "ranked.jsonl"), "context": 96})
    data = read_data(recipe)
    assert data.train.num_answers == 33 and data.train.num_pairs == 33 and data.validation is not None
    assert len(data.train.rankings) == 11 and data.validation.num_pairs == 3


def test_what_cannot_be_used_is_counted_or_named(tmp_path: Path) -> None:
    """Promise A3, and the issue's bad input."""
    recipe = content(tmp_path)
    good = about_towns(40)

    def read(bad: dict[str, Any], **data: Any) -> Any:
        write_lines(tmp_path / "pairs.jsonl", [*good, bad])
        return read_data(parse_recipe(recipe | {"data": recipe["data"] | data}, RewardRecipe, "recipe"))

    for bad, said in (
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "pairs.jsonl:41: 'chosen' and 'rejected' are equal"),
        ({"prompt": "a", "chosen": " ", "rejected": "b"}, "pairs.jsonl:41: 'chosen' is empty"),
        (
            {"prompt": "z" * 110, "chosen": "a", "rejected": "b"},
            "the prompt alone has .* tokens, and the context holds 96",
        ),
    ):
        with pytest.raises(InputError, match=said):
            read(bad)
    longer = {"prompt": "a", "chosen": "z" * 110, "rejected": "b"}
    assert read(longer, too_long="drop", validation_fraction=0).counts["pairs longer than the context"] == 1


def test_the_recipe_is_checked(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"reward.margin = -1"):
        parsed(tmp_path, reward={"margin": -1})
    with pytest.raises(InputError, match=r"train.sample_prompts: a reward model writes nothing"):
        parsed(tmp_path, train={"steps": 1, "sample_prompts": ["x"]})
    with pytest.raises(InputError, match="do not fill a batch of 500"):
        read_data(parsed(tmp_path, train={"steps": 1, "batch": 500}))


def test_padding_is_no_token_that_ends_an_answer() -> None:
    tokenizer = tiny_tokenizer()
    assert tokenizer.pad_id in tokenizer.stop_ids
    other = with_padding(tokenizer)
    assert other.pad_id == tokenizer.special_tokens["<|im_start|>"] and other.pad_id not in other.stop_ids
    assert with_padding(other) is other


def test_the_command_says_how_good_it_is(learnt: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (learnt / "recipe.yaml").write_text(yaml.safe_dump(content(learnt)))
    assert command(["reward", str(learnt / "recipe.yaml")]) == 0
    out = capsys.readouterr().out
    assert "Of 36 held-out pairs" in out and "30 steps" in out and f"--judge {learnt / 'run'}" in out
    with_section = str(learnt / "shown.yaml")
    Path(with_section).write_text(yaml.safe_dump(content(learnt, reward={"margin": 0.5})))
    assert command(["data", "show", with_section, "-n", "1"]) == 0
    shown = capsys.readouterr().out
    assert "row 0: 192 tokens" in shown and "⟦" in shown
    assert command(["show", str(learnt / "run")]) == 0
    assert "1 score a text" in capsys.readouterr().out
