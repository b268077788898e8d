"""A reward model: one number for an answer, so that better answers get higher ones (Ouyang et al. 2022, section 3.5).

The preferences are taken for the outcome of comparisons in which the better answer wins with the probability
sigmoid(r(x, y_w) - r(x, y_l)) (Bradley and Terry 1952), and the loss is minus the logarithm of that. Each answer is
scored once a step, whatever number of pairs it is in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from pellucid.alignment.before_after import changes
from pellucid.alignment.policy import check_adapter, described_policy, open_policy, saved_adapter
from pellucid.alignment.reward_recipe import RewardRecipe
from pellucid.alignment.reward_report import Report, examine, write_report
from pellucid.alignment.templates import with_template
from pellucid.checkpoints.atomic import atomic_folder
from pellucid.checkpoints.describe import base_of, describe
from pellucid.checkpoints.save import About, write_folder, write_tensors
from pellucid.checkpoints.source import FINAL, find_source
from pellucid.data.pairs import Pairs, split_pairs
from pellucid.data.prepared import Progress, prepared
from pellucid.data.rankings import RankedExamples, Rankings
from pellucid.data.shards import Shards
from pellucid.errors import InputError
from pellucid.layers.nf4 import NF4Linear
from pellucid.models.adapters import merge_adapter
from pellucid.models.classifier import Classifier
from pellucid.models.decoder import Decoder
from pellucid.models.quantised import put_layer
from pellucid.tokenizer.tokenizer import Tokenizer
from pellucid.training.expected import announced
from pellucid.training.loop import Outcome, Trainer
from pellucid.training.method import Supervised
from pellucid.training.pretrain import steps_of
from pellucid.training.ranks import Ranks, join
from pellucid.training.run import RunFolder, agreed_checkpoint
from pellucid.training.saved import Saved
from pellucid.training.setting import choose_setting
from pellucid.training.step import Measured, Objective

Say = Callable[[str], None]
SCORE = "score.safetensors"  # of a checkpoint with an adapter: the head
MEASURES = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")


def bradley_terry(chosen: Tensor, rejected: Tensor, margin: float | Tensor = 0.0) -> Tensor:
    """The loss of each pair, in nats. chosen, rejected: (P,), the rewards; margin: of all pairs, or (P,)."""
    # -log sigmoid(r(x, y_w) - r(x, y_l) - m)   (Ouyang et al. 2022, equation 1; m: Touvron et al. 2023, equation 2)
    return -F.logsigmoid(chosen - rejected - margin)


def centring(chosen: Tensor, rejected: Tensor) -> Tensor:
    """What holds rewards around 0, which no comparison does: (P,) (Eisenstein et al. 2023)."""
    # (r(x, y_w) + r(x, y_l))^2
    return (chosen + rejected) ** 2


def reward_loss(margin: float = 0.0, weight: float = 0.0) -> Objective:
    """What a step goes down: the mean over the pairs of a prompt, summed over prompts.

    weight: of the centring. Beside it the means of `MEASURES`.
    """

    def loss(model: Decoder, examples: RankedExamples) -> Measured:
        hidden = model.hidden(examples.tokens, examples.batch)  # (B, T, E)
        scores = model.logits(hidden[examples.ends[:, 0], examples.ends[:, 1]])[:, 0].float()  # (A,)
        chosen, rejected = scores[examples.pairs].unbind(1)  # (P,)
        each = bradley_terry(chosen, rejected, margin) + weight * centring(chosen, rejected)
        share = examples.shares
        measures = (chosen, rejected, chosen - rejected, (chosen > rejected).float())
        sums = {name: (share * value).sum() for name, value in zip(MEASURES, measures, strict=True)}
        return Measured((share * each).sum(), sums)

    return loss


def train_reward_model(
    recipe: RewardRecipe, *, say: Say = print, progress: Progress | None = None
) -> tuple[Outcome, Report | None]:
    """Runs the recipe, or goes on with it where its run folder has got to; the reward model is in `final/` then.

    Gives how the run ended and what it does on held-out pairs, which `report.json`, `report.md` and `reward.svg` of the
    run folder have too; None where the run was stopped, nothing was held out, and in every process but the first.
    say, progress: as for `sft.fine_tune`. Raises `InputError` for anything in the recipe or its files that cannot be,
    before the model is loaded.
    """
    with join() as ranks:
        run = RunFolder.open(recipe.run, recipe) if ranks.first else None
        tell: Say = say if ranks.first else lambda _: None
        try:
            data = ranks.first_before(partial(read_data, recipe, progress=progress, say=tell))
            outcome, model, tokenizer = _train(recipe, data, run, ranks, tell)
            if run is None or outcome.signal is not None:
                return outcome, None
            if recipe.adapter is not None:
                tell(_write_merged(recipe, run, model, tokenizer, outcome))
            if data.validation is None:
                return outcome, None
            tell(f"scoring {data.validation.num_answers:,} held-out answers")
            report, scored = examine(model, tokenizer, data.validation, recipe.report.shown, recipe.report.bins)
            report = replace(report, changes=tuple(changes(_untrained(recipe), model.cpu())))
            write_report(report, scored, run.path, recipe.base)
            return outcome, report
        finally:
            if run is not None:
                run.close()


@dataclass(frozen=True, slots=True)
class RewardData:
    """What a run reads. tokenizer: it has a chat template. counts: of records and pairs, by what became of them.
    held_counts: the same of the validation data. content: a digest of the pairs."""

    train: Rankings
    validation: Rankings | None
    tokenizer: Tokenizer
    counts: Counter[str]
    held_counts: Counter[str]
    content: str


def read_data(recipe: RewardRecipe, *, progress: Progress | None = None, say: Say | None = None) -> RewardData:
    """The data of a recipe, checked; of the base model only the small files are read.

    Raises `InputError` for a base, a file or a pair that cannot be used, by its place.
    """
    base = describe(recipe.base)
    wanted, longest = recipe.data, base.config.max_positions
    if wanted.context > longest:
        raise InputError(f"data.context = {wanted.context}: {recipe.base} holds at most {longest} tokens; lower it")
    check_adapter(recipe.base, recipe.adapter)
    tokenizer = with_template(base.tokenizer)

    def shards(part: str, names: tuple[str, ...]) -> Shards:
        folder = Path(recipe.run).expanduser() / "data" / part
        return prepared(names, tokenizer, folder, "preference", skip_bad=wanted.skip_bad, progress=progress, say=say)

    train = shards("train", wanted.train)
    counts = Counter(train.index.counts)
    held: Shards | None
    if wanted.validation:
        held = shards("validation", wanted.validation)
    else:
        train, held = split_pairs(train, wanted.validation_fraction, recipe.seed)
    pairs = Pairs(train, wanted.context, recipe.seed, too_long=wanted.too_long, flipped=wanted.label_noise)
    rankings = Rankings(pairs, recipe.seed)
    if len(rankings) < recipe.train.batch:
        raise InputError(
            f"the preferences make {len(rankings)} rows of {rankings.context} tokens, which do not fill a batch of "
            f"{recipe.train.batch}: give more of them, or a smaller train.batch or data.context"
        )
    validation, held_counts = None, Counter[str]()
    if held is not None:
        measured = Pairs(held, wanted.context, recipe.seed, too_long=wanted.too_long)
        validation = Rankings(measured, recipe.seed)
        held_counts = measured.counts + (Counter(held.index.counts) if wanted.validation else Counter())
    return RewardData(rankings, validation, tokenizer, counts + pairs.counts, held_counts, train.content)


def _train(
    recipe: RewardRecipe, data: RewardData, run: RunFolder | None, ranks: Ranks, say: Say
) -> tuple[Outcome, Classifier, Tokenizer]:
    policy, tokenizer = open_policy(recipe.base, recipe.adapter, seed=recipe.seed)
    model, tokenizer = Classifier.of(policy, seed=recipe.seed), with_padding(tokenizer)
    steps = steps_of(recipe.train, data.train)
    checkpoint = agreed_checkpoint(recipe.run, ranks)
    setting = choose_setting(recipe, model.config, steps, ranks, checkpoint.state["setting"] if checkpoint else None)
    for line in (*described(recipe, data, model), *setting.reasons):
        say(line)
    if checkpoint is not None:
        say(f"going on after step {checkpoint.step:,}")
    beside = saved_adapter(model, tokenizer, recipe.base, recipe.adapter)
    method = Supervised(data.train, reward_loss(recipe.reward.margin, recipe.reward.centring), MEASURES)
    trainer = Trainer(
        recipe, model.to(setting.device), tokenizer, method, steps, setting, run, data.content, checkpoint,
        base=base_of(find_source(recipe.base)), saved=AdapterAndScore(beside, model.score) if beside else None,
        ranks=ranks,
    )  # fmt: skip
    return trainer.train(), model, tokenizer


def _untrained(recipe: RewardRecipe) -> Classifier:
    """The model before its first step, without an adapter."""
    return Classifier.of(open_policy(recipe.base)[0], seed=recipe.seed)


def described(recipe: RewardRecipe, data: RewardData, model: Classifier) -> Iterator[str]:
    """What a run is made of, a line each."""
    train, held = data.train, data.validation
    yield from announced(recipe.expect)
    yield described_policy(recipe.base, model, recipe.adapter)
    yield (
        f"data {train.num_pairs:,} pairs of {train.num_answers:,} answers to {len(train.rankings):,} prompts, in "
        f"{len(train):,} rows of {train.context:,} ({train.waste:.0%} padding), and "
        f"{held.num_pairs if held else 0:,} pairs held out"
    )
    for reason, count in sorted(data.counts.items()):
        if count:
            yield f"data {count:,} {reason}"
    for reason, count in sorted(data.held_counts.items()):
        if count:
            yield f"data {count:,} {reason}, of those held out"
    if recipe.data.label_noise:
        yield f"data {int(train.pairs.turned.sum()):,} pairs turned round, as data.label_noise says"


def with_padding(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with a padding token that ends no answer.

    Other software looks for a classifier's score at the last token that is not padding; were it the one that ends a
    turn, as in many chat models, the score would be read before it. A tokenizer with no other control token stays.
    """
    stops = tokenizer.stop_ids
    if tokenizer.pad_id is not None and tokenizer.pad_id not in stops:
        return tokenizer
    other = next((content for content, token in tokenizer.special_tokens.items() if token not in stops), None)
    if other is None:
        return tokenizer
    new = Tokenizer(tokenizer.definition, {**tokenizer.config, "pad_token": other}, tokenizer.templates)
    new.more_stops = tokenizer.more_stops
    return new


@dataclass(frozen=True, slots=True)
class AdapterAndScore:
    """What a run with an adapter writes and takes up again: the adapter, and the head beside it."""

    adapter: Saved
    score: nn.Linear

    def write(self, folder: Path, about: About) -> None:
        self.adapter.write(folder, about)
        write_tensors(folder / SCORE, {"weight": self.score.weight.detach()})

    @torch.no_grad()
    def restore(self, folder: Path) -> None:
        self.adapter.restore(folder)
        self.score.weight.copy_(load_file(folder / SCORE)["weight"])


def _write_merged(
    recipe: RewardRecipe, run: RunFolder, model: Classifier, tokenizer: Tokenizer, outcome: Outcome
) -> str:
    """`final/` as a whole model, which needs neither base nor adapter; a line that says what merging changed."""
    merged = merge_adapter(model)
    widen(model)
    about = About(base_of(find_source(recipe.base)), outcome.steps, outcome.tokens, outcome.loss)
    with atomic_folder(run.path / FINAL) as temporary:
        write_folder(temporary, model, tokenizer, about)
    return f"the adapter is merged; rewards moved by {merged.largest:.2g} at most (of {merged.spread:.2g})"


def widen(model: Decoder) -> None:
    """Makes plain layers of those that an adapter's base keeps in four bits and that had no adapter."""
    for path, layer in list(model.named_modules()):
        if isinstance(layer, NF4Linear):
            weight = layer.widened(model.dtype)
            plain = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
            plain.weight = nn.Parameter(weight, requires_grad=False)
            plain.register_parameter("bias", layer.bias)
            put_layer(model, path, plain)
