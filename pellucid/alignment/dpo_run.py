"""A run on preferences, from its recipe to its report: data, reference, training, the model before and after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from pellucid.alignment.before_after import Comparison, Measure, Question, answer, compare, question_of, write_report
from pellucid.alignment.divergence import sampled_divergence
from pellucid.alignment.dpo import Preferences, evaluate_pairs
from pellucid.alignment.dpo_recipe import DPORecipe
from pellucid.alignment.policy import check_adapter, described_policy, open_before, open_policy, saved_adapter
from pellucid.alignment.preference_losses import WITHOUT_REFERENCE
from pellucid.alignment.reference import files_of, reference_log_probs
from pellucid.alignment.sft import questions_of
from pellucid.alignment.templates import with_template
from pellucid.checkpoints.describe import base_of, describe
from pellucid.checkpoints.load import load
from pellucid.checkpoints.source import FINAL, find_source
from pellucid.data.pairs import Pairs, split_pairs
from pellucid.data.prepared import Progress, prepared
from pellucid.data.shards import Shards
from pellucid.errors import InputError
from pellucid.models.adapters import adapter_off
from pellucid.models.decoder import Decoder
from pellucid.tokenizer.tokenizer import Tokenizer
from pellucid.training.expected import announced
from pellucid.training.loop import Outcome, Trainer
from pellucid.training.pretrain import steps_of
from pellucid.training.ranks import Ranks, join
from pellucid.training.run import RunFolder, agreed_checkpoint
from pellucid.training.setting import Setting, choose_setting

Say = Callable[[str], None]
REPORTED = ("rewards/accuracies", "rewards/margins")


def learn_preferences(
    recipe: DPORecipe, *, say: Say = print, progress: Progress | None = None
) -> tuple[Outcome, Comparison | None]:
    """Runs the recipe, or goes on with it where its run folder has got to; the model is in `final/` then.

    Gives how the run ended and, at its end, the model before and after, which `report.json` and `report.md` of the run
    folder have too; None where the run was stopped, and in every process but the first.
    say: is told what was found and chosen, a line each. progress: of making shards and of the reference's
    log-probabilities, `(phase, done, of)`.
    Raises `InputError` for anything in the recipe or its files that cannot be, before the model is loaded.
    """
    with join() as ranks:
        run = RunFolder.open(recipe.run, recipe) if ranks.first else None
        tell: Say = say if ranks.first else lambda _: None
        try:
            data = ranks.first_before(partial(read_data, recipe, progress=progress, say=tell))
            outcome, setting = _train(recipe, data, run, ranks, tell, progress)
            if run is None or outcome.signal is not None:
                return outcome, None
            tell(f"asking the model before and after {len(data.questions)} questions")
            comparison = _compare(recipe, data, run.path / FINAL, setting)
            write_report(comparison, run.path, recipe.base)
            return outcome, comparison
        finally:
            if run is not None:
                run.close()


def _train(
    recipe: DPORecipe, data: PreferenceData, run: RunFolder | None, ranks: Ranks, say: Say, progress: Progress | None
) -> tuple[Outcome, Setting]:
    model, tokenizer = open_policy(recipe.base, recipe.adapter, seed=recipe.seed)
    steps = steps_of(recipe.train, data.pairs)
    checkpoint = agreed_checkpoint(recipe.run, ranks)
    setting = choose_setting(recipe, model.config, steps, ranks, checkpoint.state["setting"] if checkpoint else None)
    for line in (*described(recipe, data, model), *setting.reasons):
        say(line)
    if checkpoint is not None:
        say(f"going on after step {checkpoint.step:,}")
    model.to(setting.device)
    if recipe.dpo.loss not in WITHOUT_REFERENCE:
        _refer(recipe, data, model, setting, ranks, progress)
    trainer = Trainer(
        recipe, model, tokenizer, Preferences(data.pairs, recipe.dpo, data.held), steps, setting, run,
        data.pairs.content, checkpoint, base=base_of(find_source(recipe.base)), sample=answer, ranks=ranks,
        saved=saved_adapter(model, tokenizer, recipe.base, recipe.adapter),
    )  # fmt: skip
    return trainer.train(), setting


def _refer(
    recipe: DPORecipe, data: PreferenceData, model: Decoder, setting: Setting, ranks: Ranks, progress: Progress | None
) -> None:
    """Gives the pairs what the reference says of them: by the first process, and the others find it in the folder.

    model: the policy before its first step, which with the adapter off is the reference.
    """
    if not ranks.first:
        ranks.agree(None)
    adapter = recipe.adapter.model_dump() if recipe.adapter else None
    for part, pairs in (("train", data.pairs), ("held", data.held)):
        if pairs is not None:
            pairs.reference = reference_log_probs(
                model,
                pairs,
                rows=recipe.train.micro_batch or recipe.train.batch,
                autocast=setting.autocast,
                file=Path(recipe.run).expanduser() / "data" / f"reference-{part}.safetensors",
                made_from=repr((recipe.base, files_of(recipe.base), adapter, setting.as_json())),
                others=recipe.dpo.loss == "kto",
                progress=progress,
            )
    if ranks.first:
        ranks.agree(None)


@dataclass(frozen=True, slots=True)
class PreferenceData:
    """What a run reads. held: pairs to measure, or None. tokenizer: it has a chat template.

    questions: to ask the model before and after. counts: of records and pairs, by what became of them. held_counts:
    the same of those held out.
    """

    tokenizer: Tokenizer
    pairs: Pairs
    held: Pairs | None
    questions: tuple[Question, ...]
    counts: Counter[str]
    held_counts: Counter[str]


def read_data(recipe: DPORecipe, *, progress: Progress | None = None, say: Say | None = None) -> PreferenceData:
    """The data of a recipe, checked; of the base model only the small files are read.

    Raises `InputError` for a base, a file or a pair that cannot be used, by its place.
    """
    base = describe(recipe.base)
    check_adapter(recipe.base, recipe.adapter)
    context, longest = recipe.data.context, base.config.max_positions
    if context > longest:
        raise InputError(f"data.context = {context}: {recipe.base} holds at most {longest} tokens; make it smaller")
    tokenizer = with_template(base.tokenizer)

    def shards(part: str, names: Sequence[str]) -> Shards:
        folder = Path(recipe.run).expanduser() / "data" / part
        return prepared(
            names, tokenizer, folder, "preference", skip_bad=recipe.data.skip_bad, progress=progress, say=say
        )

    def pairs(part: Shards, flipped: float = 0.0) -> Pairs:
        return Pairs(part, context, recipe.seed, too_long=recipe.data.too_long, flipped=flipped)

    train = shards("train", recipe.data.train)
    counts = Counter(train.index.counts)
    held: Shards | None
    if recipe.data.validation:
        held = shards("validation", recipe.data.validation)
    else:
        train, held = split_pairs(train, recipe.data.validation_fraction, recipe.seed)
    compared = pairs(train, recipe.data.label_noise)
    measured = pairs(held) if held is not None else None
    held_counts = Counter(held.index.counts) if held is not None and recipe.data.validation else Counter[str]()
    if measured is not None:
        held_counts += measured.counts
    if len(compared) < recipe.train.batch:
        raise InputError(
            f"the preferences make {len(compared)} rows of {compared.context} tokens, which do not fill a batch of "
            f"{recipe.train.batch}: give more of them, or a smaller train.batch or data.context"
        )
    better = (held or train).select((held or train).starts[::2], (held or train).lengths[::2])
    own = [question_of(text, tokenizer) for text in recipe.report.prompts]
    for question in (*own, *(question_of(text, tokenizer) for text in recipe.train.sample_prompts)):
        if len(question.ids) >= longest:
            raise InputError(
                f"a prompt of the recipe has {len(question.ids)} tokens and the context holds {longest}, the answer "
                "included: make it shorter"
            )
    drawn = questions_of(better, tokenizer, recipe.report.questions, context)
    questions = tuple({question.ids: question for question in (*own, *drawn)}.values())  # none twice
    return PreferenceData(
        tokenizer,
        compared,
        measured,
        questions[: max(recipe.report.questions, len(recipe.report.prompts))],
        counts + compared.counts,
        held_counts,
    )


def described(recipe: DPORecipe, data: PreferenceData, model: Decoder) -> Iterator[str]:
    """What a run is made of, a line each."""
    pairs, held = data.pairs, data.held
    yield from announced(recipe.expect)
    yield described_policy(recipe.base, model, recipe.adapter)
    yield f"loss {recipe.dpo.loss}, beta {recipe.dpo.beta:g}"
    yield (
        f"data {pairs.num_pairs:,} pairs, {pairs.shards.num_tokens:,} tokens, in {len(pairs):,} rows of "
        f"{pairs.context:,} ({pairs.waste:.0%} padding), and {held.num_pairs if held else 0:,} pairs held out; a step "
        f"compares about {pairs.num_pairs / len(pairs) * recipe.train.batch:.0f}"
    )
    if pairs.turned.any():
        yield f"data {int(pairs.turned.sum()):,} pairs turned round, as data.label_noise says"
    for reason, count in sorted(data.counts.items()):
        if count:
            yield f"data {count:,} {reason}"
    for reason, count in sorted(data.held_counts.items()):
        if count:
            yield f"data {count:,} {reason}, of those held out"


def _compare(recipe: DPORecipe, data: PreferenceData, final: Path, setting: Setting) -> Comparison:
    """The base and the model that has learnt: what they answer, and which of two answers they would rather give."""
    before, after = open_before(recipe.base, recipe.adapter).eval(), open_policy(str(final))[0].eval()
    comparison = compare(before, after, data.tokenizer, data.questions, max_tokens=recipe.report.max_tokens)
    measures = []
    if data.held is not None:
        one, other = _held_out(recipe, data.held, final, setting)
        measures = [Measure("loss, held-out pairs", one["loss"], other["loss"])]
        if recipe.dpo.loss in WITHOUT_REFERENCE:
            measures += [Measure(f"{name}, held-out pairs", one[name], other[name]) for name in REPORTED]
        else:  # before, policy and reference are one, and rewards the noise of rounding
            measures += [Measure(f"{name}, held-out pairs", None, other[name]) for name in REPORTED]
    far = sampled_divergence(after, before, data.tokenizer, data.questions, recipe.report.max_tokens, recipe.seed)
    measures.append(Measure(f"KL from the base, nats an answer (standard error {far.error:.2f})", 0.0, far.kl))
    return replace(comparison, measures=tuple(measures))


def _held_out(recipe: DPORecipe, held: Pairs, final: Path, setting: Setting) -> Iterator[dict[str, float]]:
    """What is measured of held-out pairs before and after, as the reference was and the policy is in training."""

    def measured(model: Decoder) -> dict[str, float]:
        together = recipe.train.micro_batch or recipe.train.batch
        return evaluate_pairs(model, held, recipe.dpo, recipe.train.evaluate_rows, together, setting.autocast)

    model = load(final, dtype="float32", device=str(setting.device))[0]
    if recipe.adapter is None:
        yield measured(open_policy(recipe.base)[0].to(setting.device))
    else:
        with adapter_off(model):
            yield measured(model)
    yield measured(model)
