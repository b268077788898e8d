"""What the tests of runs have in common: recipes, something that has tensors to be kept, a text, and processes."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from pellucid.checkpoints.save import About
from pellucid.data.examples import IGNORE, Examples
from pellucid.layers.batch import PADDING
from pellucid.models.config import ModelConfig
from pellucid.models.decoder import Decoder
from pellucid.training import loop, setting
from pellucid.training.loop import Trainer
from pellucid.training.loss import next_token_loss
from pellucid.training.method import Supervised
from pellucid.training.ranks import Ranks
from pellucid.training.recipe import PretrainRecipe, parse_recipe
from pellucid.training.run import RunFolder, agreed_checkpoint
from pellucid.training.saved import WholeModel
from pellucid.training.setting import Setting
from pellucid.training.state import Checkpoint
from tests.checkpoints.tiny import tiny_tokenizer


def recipe(**changes: Any) -> PretrainRecipe:
    """A small recipe; `changes` are fields or whole sections, given with their parts' names."""
    content = {"run": "x", "data": {"train": "book.txt"}, "train": {"steps": 100}, "model": {"num_layers": 2}}
    return parse_recipe(content | changes, PretrainRecipe, "a recipe")


class Holder:
    """In the place of the optimizers: two tensors, one of them a count."""

    def __init__(self, value: float = 0.0) -> None:
        self.tensors = {"blocks.0.w.exp_avg": torch.full((64, 8), value), "blocks.0.w.step": torch.tensor(value)}

    def state_tensors(self) -> dict[str, Tensor]:
        return self.tensors

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = dict(tensors)


def filled(model: Decoder, value: float) -> Decoder:
    """The model with every weight set to `value`."""
    for parameter in model.parameters():
        parameter.data.fill_(value)
    return model


def save_step(run: RunFolder, step: int, model: Decoder) -> Checkpoint:
    """A checkpoint in which everything, weights, optimizer and state, says `step`."""
    about = About(steps=step, tokens_seen=step * 10, last_loss=1.5)
    return run.save_checkpoint(
        step, WholeModel(filled(model, step), tiny_tokenizer()), Holder(step), {"tokens": step * 10}, about
    )


NOUNS = ("cat", "dog", "mill", "river", "bird", "old man", "stone", "moon")
VERBS = ("sat on", "saw", "left", "found", "went past", "sang to")


def write_book(path: Path, paragraphs: int = 80) -> Path:
    """A text that is quickly learnt."""
    draw = random.Random(0)

    def sentence() -> str:
        return f"The {draw.choice(NOUNS)} {draw.choice(VERBS)} the {draw.choice(NOUNS)}."

    path.write_text("\n\n".join(" ".join(sentence() for _ in range(12)) for _ in range(paragraphs)), encoding="utf-8")
    return path


def small(folder: Path, run: str = "run", **changes: dict[str, Any]) -> dict[str, Any]:
    """What a recipe file says: a run `folder`/`run` of seconds on `folder`/book.txt; `changes` to its sections."""
    if not (folder / "book.txt").exists():
        write_book(folder / "book.txt")
    content: dict[str, dict[str, Any]] = {
        "data": {"train": str(folder / "book.txt"), "context": 32, "validation_fraction": 0.1},
        "tokenizer": {"vocab_size": 280},
        "model": {
            "hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 48, "tie_embeddings": True,
        },
        "optim": {"lr": 0.005, "warmup": 5},
        "train": {"steps": 60, "batch": 8, "evaluate_every": 20, "save_every": 10},
        "expect": {},
    }  # fmt: skip
    for section, fields in changes.items():
        content[section] |= fields
    return {"run": str(folder / run), "precision": "float32", **content}


def write_recipe(folder: Path, run: str = "run", **changes: dict[str, Any]) -> str:
    """The path of a file with a `small` recipe."""
    path = folder / f"{run}.yaml"
    path.write_text(yaml.safe_dump(small(folder, run, **changes)), encoding="utf-8")
    return str(path)


def fresh(function: Callable[..., Any], *arguments: str, **variables: str) -> Any:
    """What `function` of a test's module gives in a new process, in which nothing has computed yet, so it may fork.

    What it gives and `arguments` pass as JSON. variables: of the environment.
    """
    code = (
        f"import json, sys; from {function.__module__} import {function.__name__} as f; "
        "print(json.dumps(f(*sys.argv[1:])))"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **variables}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def hurry() -> None:
    """Leaves out what takes long in runs this short, here and in every fork: pictures, measuring, late imports."""
    import torch._dynamo
    import torch.utils.tensorboard  # noqa: F401

    loop.write_curves = lambda *_: None  # type: ignore[assignment]
    setting.matmul_rate = lambda _: 100.0  # type: ignore[assignment]


def fork(function: Callable[[], int], said: Path) -> int:
    """Runs `function` in a child, whose status is what it gives and whose output goes to the file `said`; its id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    with said.open("w", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        status = 99
        try:
            status = function()
        finally:
            sys.stdout.flush()
            os._exit(status)


def ended(child: int) -> int:
    """The status with which a child ended; below 0, the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@dataclass(frozen=True)
class Counting:
    """Rows in which each token is the one before it plus one, round and round: learnt in a few steps.

    The numbers of tokens that are learnt from are very unequal, from one to all, and rows end in padding.
    """

    context: int = 16
    vocab: int = 40
    log: list[int] = field(default_factory=list)  # the rows that were read

    def __len__(self) -> int:
        return 50

    def read(self, indices: Sequence[int]) -> Examples:
        self.log.extend(indices)
        T = self.context
        begin = torch.tensor([17 * index % self.vocab for index in indices])[:, None]
        place = torch.arange(T).expand(len(indices), T)
        length = torch.tensor([T - index % 3 for index in indices])[:, None]
        learnt = torch.tensor([1 + 7 * index % (T - 3) for index in indices])[:, None]
        tokens = (begin + place) % self.vocab
        targets = torch.where(place < learnt, (tokens + 1) % self.vocab, IGNORE)
        return Examples(tokens, targets, place.contiguous(), torch.where(place < length, 0, PADDING))


SHAPE: dict[str, Any] = {
    "vocab_size": 272, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 48, "max_positions": 64,
}  # fmt: skip


def trainer(run: RunFolder | None, rows: Counting | None = None, **named: Any) -> Trainer:
    """A small model that learns to count by `recipe()`, or by `named["recipe"]`, in `run`."""
    given = named.pop("recipe", None) or recipe(**COUNTS)
    if run is not None:
        given = given.model_copy(update={"run": str(run.path)})
    setting = named.pop("setting", Setting(torch.device("cpu"), torch.float32, compiled=False, threads=1))
    model = named.pop("model", None) or Decoder(ModelConfig(**SHAPE))
    named.setdefault("checkpoint", agreed_checkpoint(given.run, named.get("ranks", Ranks())))
    steps = given.train.steps
    method = named.pop("method", None) or Supervised(
        rows or Counting(), named.pop("objective", next_token_loss), named.pop("measures", ())
    )
    return Trainer(given, model, tiny_tokenizer(), method, steps, setting, run, "the numbers", **named)


COUNTS: dict[str, Any] = {
    "optim": {"lr": 0.01, "warmup": 5, "weight_decay": 0.0},
    "train": {"steps": 60, "batch": 4, "save_every": 20, "evaluate_every": 20},
}
