"""A run in which a policy learns from its own answers: what GRPO and PPO share from the recipe to the report."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from pellucid.alignment.before_after import Comparison, Question, answer, compare, own_questions, write_report
from pellucid.alignment.playing import Game
from pellucid.alignment.policy import check_adapter, described_policy, open_before, open_policy, saved_adapter
from pellucid.alignment.prompts import Prompts, read_prompts
from pellucid.alignment.reward_model import RewardModel
from pellucid.alignment.rewards import Reward, find_reward
from pellucid.alignment.rollout_recipe import RolloutsRecipe
from pellucid.alignment.rollouts import Rollouts
from pellucid.alignment.templates import with_template
from pellucid.checkpoints.describe import base_of, describe
from pellucid.checkpoints.source import FINAL, find_source
from pellucid.errors import InputError
from pellucid.models.decoder import Decoder
from pellucid.tokenizer.tokenizer import Tokenizer
from pellucid.training.expected import announced
from pellucid.training.loop import Outcome, Trainer
from pellucid.training.method import Method
from pellucid.training.ranks import Ranks, join
from pellucid.training.run import RunFolder, agreed_checkpoint
from pellucid.training.saved import Saved
from pellucid.training.setting import Setting, choose_setting

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Learner:
    """A method, what its run writes (None: the model), and what has the trained parameters, where that is more."""

    method: Method
    saved: Saved | None = None
    trained: nn.Module | None = None


Make = Callable[[Decoder, Tokenizer, Game, Setting], Learner]


@dataclass(frozen=True, slots=True)
class RolloutData:
    """What a run reads, checked. tokenizer: it has a chat template. own: the recipe's questions for the report."""

    tokenizer: Tokenizer
    prompts: Prompts
    validation: Prompts | None
    rewards: tuple[Reward, ...]
    reward_model: RewardModel | None
    own: tuple[Question, ...]


def learn(
    recipe: RolloutsRecipe, make: Make, to_watch: Sequence[str], say: Say, *, value: str | None = None
) -> tuple[Outcome, Comparison | None]:
    """Runs the recipe, or goes on with it where its run folder has got to; the model is in `final/` then.

    make: the method. to_watch: what the log means, told at the start. value: as in `read_data`. Gives how the run ended
    and, at its end, the model before and after; None where the run was stopped, and in every process but the first.
    Raises `InputError` for anything in the recipe or its files that cannot be, before the policy is loaded.
    """
    with join() as ranks:
        run = RunFolder.open(recipe.run, recipe) if ranks.first else None
        tell: Say = say if ranks.first else lambda _: None
        try:
            data = read_data(recipe, value)
            outcome = _train(recipe, data, make, to_watch, run, ranks, tell)
            if run is None or outcome.signal is not None:
                return outcome, None
            questions = tuple(questions_of(recipe, data))
            tell(f"asking the base and the trained model {len(questions)} questions")
            before, after = open_before(recipe.base, recipe.adapter), open_policy(str(run.path / FINAL))[0]
            comparison = compare(
                before, after, data.tokenizer, questions, None,
                max_tokens=recipe.report.max_tokens, rows=recipe.train.evaluate_rows,
            )  # fmt: skip
            write_report(comparison, run.path, recipe.base)
            return outcome, comparison
        finally:
            if run is not None:
                run.close()


def _train(
    recipe: RolloutsRecipe, data: RolloutData, make: Make, to_watch: Sequence[str], run: RunFolder | None,
    ranks: Ranks, say: Say,
) -> Outcome:  # fmt: skip
    model, tokenizer = open_policy(recipe.base, recipe.adapter, seed=recipe.seed)
    steps = steps_of(recipe, data.prompts)
    checkpoint = agreed_checkpoint(recipe.run, ranks)
    setting = choose_setting(recipe, model.config, steps, ranks, checkpoint.state["setting"] if checkpoint else None)
    model = model.to(setting.device)
    if data.reward_model is not None:
        data.reward_model.model.to(setting.device)
    rollouts = Rollouts(model, tokenizer, recipe.data.context, together=recipe.rollouts.together, dtype=setting.dtype)
    for line in (*described(recipe, data, model), *setting.reasons, f"rollouts {rollouts.engine.runner.how}"):
        say(line)
    for line in to_watch:
        say(line)
    if checkpoint is not None:
        say(f"going on after step {checkpoint.step:,}")
    game = Game(
        recipe, data.prompts, data.validation, data.rewards, data.reward_model, rollouts, ranks,
        run.path if run is not None else None, say,
    )  # fmt: skip
    learner = make(model, tokenizer, game, setting)
    trainer = Trainer(
        recipe, model, tokenizer, learner.method, steps, setting, run, data.prompts.content, checkpoint,
        base=base_of(find_source(recipe.base)), sample=answer, ranks=ranks, trained=learner.trained,
        saved=learner.saved or saved_adapter(model, tokenizer, recipe.base, recipe.adapter),
    )  # fmt: skip
    return trainer.train()


def read_data(recipe: RolloutsRecipe, value: str | None = None) -> RolloutData:
    """Prompts and rewards; of the policy, and of the folder of a value model, only the small files are read."""
    rewards = tuple(find_reward(one.name, one.weight) for one in recipe.rewards)
    base = describe(recipe.base)
    check_adapter(recipe.base, recipe.adapter)
    context, longest = recipe.data.context, base.config.max_positions
    if context > longest:
        raise InputError(f"data.context = {context}: {recipe.base} holds at most {longest} tokens; make it smaller")
    for reader in (recipe.reward_model, value):
        if reader is not None and (most := describe(reader).config.max_positions) < context:
            raise InputError(f"data.context = {context}: {reader} reads at most {most} tokens; make it smaller")
    tokenizer = with_template(base.tokenizer)
    own = tuple(own_questions(recipe.report.prompts, recipe.train.sample_prompts, tokenizer, longest))

    def read(names: Sequence[str]) -> Prompts:
        return read_prompts(
            names, tokenizer, chat=recipe.data.chat, longest=context - recipe.rollouts.max_tokens,
            too_long=recipe.data.too_long, skip_bad=recipe.data.skip_bad, seed=recipe.seed,
        )  # fmt: skip

    prompts = read(recipe.data.train)
    if len(prompts) < recipe.train.batch:
        raise InputError(
            f"there are {len(prompts)} prompts, which do not fill a batch of {recipe.train.batch}: give more of them, "
            "or a smaller train.batch"
        )
    model = None
    if recipe.reward_model is not None:
        model = RewardModel.load(recipe.reward_model)
        model.check_reads(tokenizer)
    return RolloutData(
        tokenizer, prompts, read(recipe.data.validation) if recipe.data.validation else None, rewards, model, own
    )


def steps_of(recipe: RolloutsRecipe, prompts: Prompts) -> int:
    """How many steps the recipe asks for."""
    if recipe.train.steps is not None:
        return recipe.train.steps
    assert recipe.train.epochs is not None
    return math.ceil(recipe.train.epochs * len(prompts) / recipe.train.batch)


def described(recipe: RolloutsRecipe, data: RolloutData, model: Decoder) -> Iterator[str]:
    """What a run is made of, a line each."""
    yield from announced(recipe.expect)
    yield described_policy(recipe.base, model, recipe.adapter)
    held = f", and {len(data.validation)} held out" if data.validation is not None else ""
    yield f"data {len(data.prompts):,} prompts{held}"
    for reason, count in sorted(data.prompts.counts.items()):
        if count and not reason.startswith("kept"):
            yield f"data {count:,} {reason}"
    named = [f"{one.weight:g} x {one.name}" for one in recipe.rewards]
    named += [f"the score of {recipe.reward_model}"] if recipe.reward_model is not None else []
    yield f"reward {' + '.join(named)}"
    drawn = recipe.rollouts
    cut = f", top-p {drawn.top_p:g}" if drawn.top_p < 1 else ""
    yield (
        f"a step {recipe.train.batch} prompts, {drawn.answers} answers to each, of at most {drawn.max_tokens} tokens "
        f"at temperature {drawn.temperature:g}{cut}"
    )


def questions_of(recipe: RolloutsRecipe, data: RolloutData) -> Iterator[Question]:
    """The recipe's own questions, then prompts, those held out first."""
    yield from data.own
    for prompt in (data.validation or data.prompts).prompts[: max(0, recipe.report.questions - len(data.own))]:
        yield Question(data.tokenizer.decode(prompt.ids), prompt.ids, _expected(prompt.columns))


def _expected(columns: dict[str, Any]) -> str | None:
    right = columns.get("answer")
    return None if right is None else str(right[0] if isinstance(right, list) and right else right)
