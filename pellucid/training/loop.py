"""The loop: read rows, take the gradient, move the weights; measure, evaluate and save on the way.

What happens in step n is a function of the recipe, the weights and optimizer state after step n - 1, and n. So the same
command resumes a run that was killed, and on a CPU every later number is, bit for bit, that of a run left alone.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from pellucid.checkpoints.atomic import atomic_file
from pellucid.checkpoints.save import About
from pellucid.data.examples import IGNORE, Examples, Rows
from pellucid.models.decoder import Decoder
from pellucid.tokenizer.tokenizer import Tokenizer
from pellucid.training.costs import training_flops, utilisation
from pellucid.training.curves import write_curves
from pellucid.training.evaluate import Evaluation, evaluate
from pellucid.training.loss import next_token_loss
from pellucid.training.metrics import Metrics
from pellucid.training.optimizers import Optimizers, make_optimizer
from pellucid.training.progress import Progress
from pellucid.training.ranks import Ranks
from pellucid.training.recipe import Recipe
from pellucid.training.run import RunFolder, newest_checkpoint
from pellucid.training.schedules import scale
from pellucid.training.setting import Setting, compile_blocks
from pellucid.training.signals import Signals
from pellucid.training.step import Gradient, Objective, clip, take_gradient
from pellucid.training.watch import Watch, blame

SAMPLES = "samples.jsonl"

Sample = Callable[[Decoder, Tokenizer, Sequence[str], int], list[str]]
"""Continues each prompt by at most so many tokens."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended. signal: the one that stopped it before its end, or None. seconds: of this process's steps."""

    steps: int
    tokens: int
    loss: float | None
    validation: Evaluation | None
    signal: int | None
    seconds: float


@dataclass
class Trainer:
    """A run under way, from wherever it had got to.

    model: on its device, with its weights before the first step. rows, validation: what it learns from, and what it is
    measured on. objective: the loss. base: the model that it was made from. sample: what continues the recipe's
    prompts. run: where all is written; None in every process but the first.
    """

    recipe: Recipe
    model: Decoder
    tokenizer: Tokenizer
    rows: Rows
    steps: int
    setting: Setting
    run: RunFolder | None
    validation: Rows | None = None
    objective: Objective = next_token_loss
    base: str | None = None
    sample: Sample | None = None
    ranks: Ranks = field(default_factory=Ranks)
    # The state of the run, saved with every checkpoint
    done: int = 0
    tokens: int = 0
    loss: float | None = None

    def __post_init__(self) -> None:
        self.watch = Watch(self.recipe.train.explode)
        self.optimizers: Optimizers = make_optimizer(self.model, self.recipe.optim, self.setting.dtype)
        self.evaluation: Evaluation | None = None
        scale(self.recipe.optim, 0, self.steps)  # a schedule that does not fit the run is said before it begins

    def train(self) -> Outcome:
        """All steps that are left; whole checkpoints on the way, `final/` at the end.

        Raises `PellucidError` when the loss is not finite or explodes, and when the disk refuses.
        """
        resumed = self._restore()
        self.model.train()
        compile_blocks(self.model, self.setting)
        began = time.perf_counter()
        with Signals() as signals, self._metrics(resumed) as metrics, self._progress() as progress:
            if self.done < self.steps:
                with progress.phase("compiling" if self.setting.compiled else "trying"):
                    self._preflight()
            while self.done < self.steps and not signals.received:
                self._step(metrics, progress)
                last = self.done == self.steps
                if self.done % self.recipe.train.evaluate_every == 0 or last:
                    self._look(metrics, progress)
                signals.received = self.ranks.agree(signals.received)
                if self.done % self.recipe.train.save_every == 0 or last or signals.received:
                    self._save(progress)
        if self.run is not None:
            if self.done == self.steps:
                self.run.save_final(self.model, self.tokenizer, self._about())
            write_curves(self.run.path, self.run.path.name, self.recipe.expect.loss)
        seconds = time.perf_counter() - began
        return Outcome(self.done, self.tokens, self.loss, self.evaluation, signals.received, seconds)

    def _step(self, metrics: Metrics | None, progress: Progress) -> None:
        """One batch: its rows are the next in order, shared out over the processes."""
        began = time.perf_counter()
        recipe, step = self.recipe, self.done + 1
        batch = range(self.done * recipe.train.batch, step * recipe.train.batch)
        examples = self._read(self.ranks.share(batch))
        reading = time.perf_counter() - began
        gradient = self._gradient(examples)
        self.watch.check(step, gradient.loss, gradient.norm, batch, lambda: self._blame(examples))
        clip(self.model, gradient.norm, recipe.optim.clip)
        rate = scale(recipe.optim, self.done, self.steps)
        self.optimizers.step(rate)
        self.optimizers.zero_grad()
        self.done, self.tokens, self.loss = step, self.tokens + gradient.real, gradient.loss
        seconds = time.perf_counter() - began
        speed, mfu = self._speed(examples, gradient, seconds)
        progress.step(step, loss=gradient.loss, rate=speed, mfu=mfu)
        if metrics is not None:
            metrics.log(
                step, tokens=self.tokens, loss=gradient.loss, learnt=gradient.learnt, gradient_norm=gradient.norm,
                lr=recipe.optim.lr * rate, seconds=seconds, reading=reading, tokens_per_second=speed, mfu=mfu,
            )  # fmt: skip

    def _gradient(self, examples: Examples | None) -> Gradient:
        train, autocast = self.recipe.train, self.setting.autocast
        return take_gradient(
            self.model, examples, self.objective, micro_batch=train.micro_batch, autocast=autocast, ranks=self.ranks
        )

    def _read(self, rows: range) -> Examples | None:
        return self.rows.read(rows).to(self.setting.device) if rows else None

    def _preflight(self) -> None:
        """The heaviest step there can be, before the first: every token is learnt from. If it fits, all do (D4)."""
        examples = self._read(self.ranks.share(range(self.recipe.train.batch)))
        if examples is not None:
            heavy = torch.where(examples.targets == IGNORE, 0, examples.targets)
            examples = Examples(examples.tokens, heavy, examples.positions, examples.documents)
        self._gradient(examples)
        self.optimizers.zero_grad()

    def _speed(self, examples: Examples | None, gradient: Gradient, seconds: float) -> tuple[float, float | None]:
        """Tokens/s, padding not counted, and MFU."""
        speed = gradient.real / seconds
        if examples is None or self.setting.ceiling is None:
            return speed, None
        places = examples.positions[examples.documents >= 0]
        flops = training_flops(self.model.config, 2 * float(places.float().mean()) + 1)
        return speed, utilisation(flops, speed, self.setting.ceiling * self.ranks.world)

    def _look(self, metrics: Metrics | None, progress: Progress) -> None:
        """The validation rows, and the prompts of the recipe."""
        train = self.recipe.train
        self.model.eval()
        if self.validation is not None:
            with progress.phase("evaluating"):
                self.evaluation = evaluate(
                    self.model, self.tokenizer, self.validation, train.evaluate_rows,
                    together=train.micro_batch or train.batch, autocast=self.setting.autocast, ranks=self.ranks,
                )  # fmt: skip
            if metrics is not None:
                metrics.log(self.done, tokens=self.tokens, **self.evaluation.metrics("validation"))
                size = self.evaluation.bits_per_byte
                bits = "" if size is None else f", {size:.3f} bits per byte"
                progress.say(f"step {self.done:,}: validation loss {self.evaluation.loss:.3f}{bits}")
        if self.run is not None and self.sample is not None and train.sample_prompts:
            # Every token would have a shape of its own to compile.
            with progress.phase("sampling"), torch.compiler.set_stance("force_eager"):
                answers = self.sample(self.model, self.tokenizer, train.sample_prompts, train.sample_tokens)
            with (self.run.path / SAMPLES).open("a", encoding="utf-8") as file:
                for prompt, answer in zip(train.sample_prompts, answers, strict=True):
                    line = {"step": self.done, "prompt": prompt, "text": answer}
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
                    progress.say(f"  {prompt}\N{HORIZONTAL ELLIPSIS}{' '.join(answer.split())}")
        self.model.train()

    def _blame(self, examples: Examples | None) -> str:
        return "in another process" if examples is None else blame(self.model, examples, self.setting.autocast)

    def _about(self) -> About:
        return About(base=self.base, steps=self.done, tokens_seen=self.tokens, last_loss=self.loss)

    def _save(self, progress: Progress) -> None:
        if self.run is None:
            return
        state = {
            "tokens": self.tokens,
            "loss": self.loss,
            "mean": self.watch.mean,
            "seen": self.watch.seen,
            "setting": self.setting.as_json(),
        }
        with progress.phase("saving"):
            self.run.save_checkpoint(self.done, self.model, self.tokenizer, self.optimizers, state, self._about())
            write_curves(self.run.path, self.run.path.name, self.recipe.expect.loss)

    def _restore(self) -> int | None:
        """Goes back to the newest whole checkpoint, the same in every process; its step, or None."""
        path = Path(self.recipe.run).expanduser()
        checkpoint = newest_checkpoint(path) if self.ranks.first else None
        step = self.ranks.agree(checkpoint.step if checkpoint else None)
        if step is None:
            return None
        if checkpoint is None:
            checkpoint = newest_checkpoint(path)
        assert checkpoint is not None and checkpoint.step == step, "the checkpoints changed while the run began"
        state = checkpoint.restore(self.model, self.optimizers)
        self.done, self.tokens, self.loss = state["step"], state["tokens"], state["loss"]
        self.watch.mean, self.watch.seen = state["mean"], state["seen"]
        return step

    @contextmanager
    def _metrics(self, resumed: int | None) -> Iterator[Metrics | None]:
        """The metrics and samples of later steps, which come again, are cut off. None where another process writes."""
        if self.run is None:
            yield None
            return
        samples = self.run.path / SAMPLES
        if samples.exists():
            lines = samples.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= (resumed or 0)]
            with atomic_file(samples) as temporary:
                temporary.write_text("".join(kept), encoding="utf-8")
        with Metrics(self.run.path, resumed) as metrics:
            yield metrics

    def _progress(self) -> Progress:
        return Progress(self.steps, self.done, stream=io.StringIO() if self.run is None else None)
