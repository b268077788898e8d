"""The loop: step after step of a method that moves the weights; measure, evaluate and save on the way.

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
from torch import nn

from pellucid.checkpoints.atomic import refused
from pellucid.checkpoints.save import About
from pellucid.data.examples import BatchOfRows, Rows
from pellucid.errors import InputError, PellucidError
from pellucid.models.decoder import Decoder
from pellucid.tokenizer.tokenizer import Tokenizer
from pellucid.training.costs import peak_memory, training_flops, utilisation
from pellucid.training.curves import write_curves
from pellucid.training.evaluate import Evaluation, evaluate
from pellucid.training.expected import verdicts
from pellucid.training.method import Method, Moved
from pellucid.training.metrics import KEPT, Metrics, cut
from pellucid.training.optimizers import Optimizers, make_optimizer
from pellucid.training.progress import Progress
from pellucid.training.ranks import Ranks
from pellucid.training.recipe import Recipe
from pellucid.training.run import RunFolder
from pellucid.training.saved import Saved, WholeModel
from pellucid.training.schedules import scale
from pellucid.training.setting import Setting, checkpoint_blocks, compile_blocks
from pellucid.training.signals import Signals
from pellucid.training.state import Checkpoint
from pellucid.training.step import Gradient, Objective, clip, take_gradient
from pellucid.training.watch import NOWHERE, Watch, blame, check_weights

SAMPLES = "samples.jsonl"

Sample = Callable[[Decoder, Tokenizer, Sequence[str], int], list[str]]
"""Continues each prompt by at most so many tokens."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended.

    signal: the one that stopped it, or None. seconds: of this process's steps. memory: the most that this process has
    taken, in bytes. expected: how its loss compares with what the recipe expects, a line each.
    """

    steps: int
    tokens: int
    loss: float | None
    validation: Evaluation | None
    signal: int | None
    seconds: float
    memory: int
    expected: tuple[str, ...]


@dataclass
class Trainer:
    """A run under way, from wherever it had got to.

    model: on its device, with its weights before the first step; those that want a gradient are trained. method: what
    a step does. data: a digest of what it learns from. validation: what the model is measured on. base: the model that
    it was made from. sample: what continues the recipe's prompts. run: where all is written; None in every process but
    the first. saved: what is written (None: the whole model). trained: what has the parameters that are moved, where
    that is more than the model. checkpoint: what it goes on from.
    """

    recipe: Recipe
    model: Decoder
    tokenizer: Tokenizer
    method: Method
    steps: int
    setting: Setting
    run: RunFolder | None
    data: str
    checkpoint: Checkpoint | None = None
    validation: Rows | None = None
    base: str | None = None
    sample: Sample | None = None
    saved: Saved | None = None
    trained: nn.Module | None = None
    ranks: Ranks = field(default_factory=Ranks)
    # The state of the run, saved with every checkpoint
    done: int = 0
    tokens: int = 0
    loss: float | None = None

    def __post_init__(self) -> None:
        self.watch = Watch(self.recipe.train.explode)
        self.optimizers: Optimizers = make_optimizer(self.trained or self.model, self.recipe.optim, self.setting.dtype)
        self.evaluation: Evaluation | None = None
        self._saved: Saved = self.saved or WholeModel(self.model, self.tokenizer)
        scale(self.recipe.optim, 0, self.steps)  # a schedule that does not fit the run is said before it begins

    def train(self) -> Outcome:
        """All steps that are left; whole checkpoints on the way, `final/` at the end.

        Raises `PellucidError` when the loss is not finite or explodes, when a step does not fit in memory, and when the
        disk refuses; `InputError` when the data are not those that the run began with.
        """
        resumed = self._restore()
        self.model.train()
        if self.recipe.train.activation_checkpointing:
            for decoder in self._trained():
                checkpoint_blocks(decoder)
        compile_blocks(self.model, self.setting)
        began = time.perf_counter()
        with Signals() as signals, self._metrics(resumed) as metrics, self._progress() as progress:
            if self.done < self.steps:
                with progress.phase("compiling" if self.setting.compiled else "trying"):
                    self._preflight()
            stopped = self.ranks.agree(signals.received)
            while self.done < self.steps and stopped is None:
                self._step(metrics, progress)
                last = self.done == self.steps
                if self.done % self.recipe.train.evaluate_every == 0 or last:
                    self._look(metrics, progress)
                stopped = self.ranks.agree(signals.received)  # one that comes from here on is for the next step
                if self.done % self.recipe.train.save_every == 0 or last or stopped is not None:
                    self._save(progress)
        expected: tuple[str, ...] = ()
        if self.run is not None:
            if self.done == self.steps:
                self.run.save_final(self._saved, self._about())
            write_curves(self.run.path, self.run.path.name, self.recipe.expect.loss)
            expected = tuple(verdicts(self.run.path, self.recipe.expect.loss))
        return Outcome(
            self.done, self.tokens, self.loss, self.evaluation, stopped, time.perf_counter() - began,
            peak_memory(self.setting.device), expected,
        )  # fmt: skip

    def descend(
        self,
        step: int,
        examples: BatchOfRows | None,
        objective: Objective,
        batch: range,
        *,
        measures: Sequence[str] = (),
        micro_batch: int | None = None,
        look: str | None = None,
    ) -> Gradient:
        """Moves the weights once, down the gradient at `examples`, this process's share of rows `batch` of the data.

        look: as `Watch.check` has it.
        Raises `PellucidError`, having moved nothing, where the loss or the gradient is not finite or the loss explodes.
        """
        gradient = self.gradient(examples, objective, measures=measures, micro_batch=micro_batch)
        self.watch.check(step, gradient.loss, gradient.norm, batch, lambda: self._blame(examples), look)
        clip(self.trained or self.model, gradient.norm, self.recipe.optim.clip)
        self.optimizers.step(scale(self.recipe.optim, step - 1, self.steps))
        self.optimizers.zero_grad()
        return gradient

    def gradient(
        self,
        examples: BatchOfRows | None,
        objective: Objective,
        *,
        measures: Sequence[str] = (),
        micro_batch: int | None = None,
    ) -> Gradient:
        """Puts a gradient into the parameters' `.grad`: see `take_gradient`. micro_batch: None, as the recipe says."""
        return take_gradient(
            self.model, examples, objective, micro_batch=micro_batch or self.recipe.train.micro_batch,
            autocast=self.setting.autocast, ranks=self.ranks, measures=measures, trained=self.trained,
        )  # fmt: skip

    def _step(self, metrics: Metrics | None, progress: Progress) -> None:
        began = time.perf_counter()
        recipe, step = self.recipe, self.done + 1
        # What chance there is in a step, such as dropout, follows from its number: a resumed run draws the same.
        torch.manual_seed(hash((recipe.seed, step, self.ranks.rank)))
        moved = self.method.step(self, step)
        self.done, self.tokens, self.loss = step, self.tokens + moved.real, moved.loss
        seconds = time.perf_counter() - began
        speed, mfu = self._speed(moved, seconds)
        progress.step(step, loss=moved.loss, rate=speed, mfu=mfu)
        if metrics is not None and self.run is not None:
            metrics.log(
                step, tokens=self.tokens, loss=moved.loss, learnt=moved.learnt, gradient_norm=moved.norm,
                lr=recipe.optim.lr * scale(recipe.optim, step - 1, self.steps), seconds=seconds, reading=moved.reading,
                tokens_per_second=speed, mfu=mfu, **moved.measures,
            )  # fmt: skip
            for line in verdicts(self.run.path, [band for band in recipe.expect.loss if band.step == step]):
                progress.say(line)

    def _preflight(self) -> None:
        """The heaviest step there can be, before the first. If it fits, all do (D4)."""
        try:
            self.method.preflight(self)
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
                raise
            train = self.recipe.train
            raise PellucidError(
                f"the memory does not hold a step of {train.micro_batch or train.batch} rows of "
                f"{self.recipe.data.context} tokens at a time: lower train.micro_batch, which changes no result, or "
                "set train.activation_checkpointing=true"
            ) from error
        self.optimizers.zero_grad()

    def _speed(self, moved: Moved, seconds: float) -> tuple[float, float | None]:
        """Tokens/s, padding not counted, and MFU: None where the ceiling is not known, or was measured too low, beside
        other work, as a figure above 1 shows."""
        speed = moved.real / seconds
        if moved.seen is None or self.setting.ceiling is None:
            return speed, None
        flops = training_flops(self.model.config, 2 * moved.seen + 1)
        mfu = utilisation(flops, speed, self.setting.ceiling * self.ranks.world)
        return speed, mfu if mfu <= 1 else None

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
            self._keep_samples(self.run.path / SAMPLES, answers)
            for prompt, answer in zip(train.sample_prompts, answers, strict=True):
                progress.say(f"  {prompt}\N{HORIZONTAL ELLIPSIS}{' '.join(answer.split())}")
        self.model.train()

    def _keep_samples(self, path: Path, answers: Sequence[str]) -> None:
        """Adds them to `samples.jsonl`, a line each. Raises `PellucidError` when the disk refuses."""
        pairs = zip(self.recipe.train.sample_prompts, answers, strict=True)
        lines = [{"step": self.done, "prompt": prompt, "text": answer} for prompt, answer in pairs]
        try:
            with path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        except OSError as error:
            raise refused(path, error, KEPT) from error

    def _blame(self, examples: BatchOfRows | None) -> str:
        if examples is None:
            return "in another process"
        places = [blame(decoder, examples, self.setting.autocast) for decoder in self._trained()]
        return next((place for place in places if place != NOWHERE), NOWHERE)

    def _trained(self) -> list[Decoder]:
        """The model, and another that is trained beside it."""
        return [part for part in (self.trained or self.model).modules() if isinstance(part, Decoder)]

    def _about(self) -> About:
        return About(base=self.base, steps=self.done, tokens_seen=self.tokens, last_loss=self.loss)

    def _save(self, progress: Progress) -> None:
        if self.run is None:
            return
        check_weights(self.trained or self.model, self.done)
        state = {
            "data": self.data,
            "tokens": self.tokens,
            "loss": self.loss,
            "mean": self.watch.mean,
            "seen": self.watch.seen,
            "setting": self.setting.as_json(),
            "method": self.method.state(),
        }
        with progress.phase("saving"):
            self.run.save_checkpoint(self.done, self._saved, self.optimizers, state, self._about())
            write_curves(self.run.path, self.run.path.name, self.recipe.expect.loss)

    def _restore(self) -> int | None:
        """Goes back to the checkpoint; its step, or None."""
        if self.checkpoint is None:
            return None
        if self.checkpoint.state["data"] != self.data:
            raise InputError(
                f"the data hold other tokens now than when {self.recipe.run} was begun: put back the data that were "
                "there, or choose another run folder"
            )
        state = self.checkpoint.restore(self._saved, self.optimizers)
        self.done, self.tokens, self.loss = state["step"], state["tokens"], state["loss"]
        self.watch.mean, self.watch.seen = state["mean"], state["seen"]
        self.method.restore(state.get("method", {}))
        return self.done

    @contextmanager
    def _metrics(self, resumed: int | None) -> Iterator[Metrics | None]:
        """The metrics and samples of later steps, which come again, are cut off. None where another process writes."""
        if self.run is None:
            yield None
            return
        cut(self.run.path / SAMPLES, resumed)
        with Metrics(self.run.path, resumed) as metrics:
            yield metrics

    def _progress(self) -> Progress:
        return Progress(self.steps, self.done, stream=io.StringIO() if self.run is None else None)
