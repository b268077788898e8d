"""Supervised fine-tuning: a model learns to answer from conversations (Ouyang et al. 2022, section 3.1).

The loss is that of pretraining, over the assistant's tokens alone:

    L = - sum over t of m_t log p(x_t | x_<t) / sum over t of m_t

where m_t is 1 for what the assistant says, through the token that ends its turn, and 0 for the rest. Conversations
share a row, and none attends to another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from pellucid.alignment.before_after import Comparison, Question, answer, compare, own_questions, write_report
from pellucid.alignment.keeping import hold
from pellucid.alignment.policy import check_adapter, described_policy, open_before, open_policy, saved_adapter
from pellucid.alignment.recipe import SFTRecipe
from pellucid.alignment.templates import with_template
from pellucid.checkpoints.describe import base_of, describe
from pellucid.checkpoints.source import FINAL, find_source
from pellucid.data.examples import Rows
from pellucid.data.mixture import Mixture
from pellucid.data.order import permutation
from pellucid.data.packing import Stream, Whole
from pellucid.data.prepared import Progress, prepared
from pellucid.data.shards import Shards, split
from pellucid.errors import InputError
from pellucid.models.decoder import Decoder
from pellucid.tokenizer.tokenizer import Tokenizer
from pellucid.training.expected import announced
from pellucid.training.loop import Outcome, Trainer
from pellucid.training.method import Supervised
from pellucid.training.pretrain import steps_of
from pellucid.training.ranks import Ranks, join
from pellucid.training.run import RunFolder, agreed_checkpoint
from pellucid.training.setting import choose_setting

Say = Callable[[str], None]


def fine_tune(
    recipe: SFTRecipe, *, say: Say = print, progress: Progress | None = None
) -> tuple[Outcome, Comparison | None]:
    """Runs the recipe, or goes on with it where its run folder has got to; the model is in `final/` then.

    Gives how the run ended and, at its end, the model before and after, which `report.json` and `report.md` of the run
    folder have too; None where the run was stopped, and in every process but the first.
    say: is told what was found and chosen, a line each. progress: of making shards, `(phase, done, of)`.
    Raises `InputError` for anything in the recipe or its files that cannot be, before the model is loaded.
    """
    with join() as ranks:
        run = RunFolder.open(recipe.run, recipe) if ranks.first else None
        tell: Say = say if ranks.first else lambda _: None
        try:
            data = ranks.first_before(partial(read_data, recipe, progress=progress, say=tell))
            check_batch(recipe, data)
            outcome = _train(recipe, data, run, ranks, tell)
            if run is None or outcome.signal is not None:
                return outcome, None
            tell(f"asking the base and the fine-tuned model {len(data.questions)} questions")
            before, after = open_before(recipe.base, recipe.adapter), open_policy(str(run.path / FINAL))[0]
            comparison = compare(
                before, after, data.tokenizer, data.questions, data.validation,
                max_tokens=recipe.report.max_tokens, rows=recipe.train.evaluate_rows,
            )  # fmt: skip
            write_report(comparison, run.path, recipe.base)
            return outcome, comparison
        finally:
            if run is not None:
                run.close()


def _train(recipe: SFTRecipe, data: FineTuningData, run: RunFolder | None, ranks: Ranks, say: Say) -> Outcome:
    model, tokenizer = open_policy(recipe.base, recipe.adapter, seed=recipe.seed)
    steps = steps_of(recipe.train, data.rows)
    checkpoint = agreed_checkpoint(recipe.run, ranks)
    setting = choose_setting(recipe, model.config, steps, ranks, checkpoint.state["setting"] if checkpoint else None)
    for line in (*described(recipe, data, model), *setting.reasons):
        say(line)
    if checkpoint is not None:
        say(f"going on after step {checkpoint.step:,}")
    trainer = Trainer(
        recipe, model.to(setting.device), tokenizer, Supervised(data.rows), steps, setting, run, data.content,
        checkpoint, validation=data.validation, base=base_of(find_source(recipe.base)), sample=answer, ranks=ranks,
        saved=saved_adapter(model, tokenizer, recipe.base, recipe.adapter),
    )  # fmt: skip
    if recipe.keep is not None:
        say(f"keep {recipe.keep.penalty}, of strength {recipe.keep.strength:g}")
        hold(trainer, recipe.keep, data.old)
    return trainer.train()


@dataclass(frozen=True, slots=True)
class FineTuningData:
    """What a run reads. conversations: those of `rows`, without replayed text. tokenizer: it has a chat template.

    old: of text that is not to be forgotten, for `keep`. questions: to ask the model before and after. counts: of
    records, by what became of them. content: a digest of what all rows are made from.
    """

    tokenizer: Tokenizer
    conversations: Whole
    rows: Rows
    old: Rows | None
    validation: Whole | None
    questions: tuple[Question, ...]
    counts: Counter[str]
    content: str


def read_data(recipe: SFTRecipe, *, progress: Progress | None = None, say: Say | None = None) -> FineTuningData:
    """The data of a recipe, checked; of the base model only the small files are read.

    Raises `InputError` for a base, a file or a conversation that cannot be used, by its place.
    """
    base = describe(recipe.base)
    check_adapter(recipe.base, recipe.adapter)
    context, longest = recipe.data.context, base.config.max_positions
    if context > longest:
        raise InputError(f"data.context = {context}: {recipe.base} holds at most {longest} tokens; make it smaller")
    tokenizer = with_template(base.tokenizer)

    def shards(
        part: str, names: Sequence[str], whose: Tokenizer, kind: Literal["conversation", "text"] = "conversation"
    ) -> Shards:
        folder = Path(recipe.run).expanduser() / "data" / part
        return prepared(names, whose, folder, kind, skip_bad=recipe.data.skip_bad, progress=progress, say=say)

    def whole(part: Shards) -> Whole:
        return Whole(part, context, recipe.seed, too_long=recipe.data.too_long)

    train = shards("train", recipe.data.train, tokenizer)
    counts = Counter(train.index.counts)
    held: Shards | None
    if recipe.data.validation:
        held = shards("validation", recipe.data.validation, tokenizer)
    else:
        train, held = split(train, recipe.data.validation_fraction, recipe.seed)
    conversations = whole(train)
    rows: Rows = conversations
    content = train.content
    replay, keep, old = recipe.data.replay, recipe.keep, None
    if replay is not None:
        old = Stream(shards("replay", replay.data, base.tokenizer, "text"), context, recipe.seed)
        rows = Mixture(conversations, old, replay.fraction)
        content += old.shards.content
    if keep is not None and keep.data:
        old = Stream(shards("keep", keep.data, base.tokenizer, "text"), context, recipe.seed)
        content += old.shards.content
    own = own_questions(recipe.report.prompts, recipe.train.sample_prompts, tokenizer, longest)
    drawn = questions_of(held or train, tokenizer, recipe.report.questions, context)
    questions = tuple({question.ids: question for question in (*own, *drawn)}.values())  # none twice
    return FineTuningData(
        tokenizer,
        conversations,
        rows,
        old,
        whole(held) if held is not None else None,
        questions[: max(recipe.report.questions, len(recipe.report.prompts))],
        counts + conversations.counts,
        content,
    )


def check_batch(recipe: SFTRecipe, data: FineTuningData) -> None:
    """`InputError` if the rows do not fill one batch, so that a step would read some of them twice."""
    if len(data.rows) < recipe.train.batch:
        raise InputError(
            f"the conversations make {len(data.rows)} rows of {recipe.data.context} tokens, which do not fill a batch "
            f"of {recipe.train.batch}: give more of them, or a smaller train.batch or data.context"
        )


def described(recipe: SFTRecipe, data: FineTuningData, model: Decoder) -> Iterator[str]:
    """What a run is made of, a line each."""
    rows, held = data.conversations, data.validation
    yield from announced(recipe.expect)
    yield described_policy(recipe.base, model, recipe.adapter)
    yield (
        f"data {rows.shards.num_documents:,} conversations, {rows.shards.num_tokens:,} tokens, in {len(rows):,} rows "
        f"of {rows.context:,} ({rows.waste:.0%} padding), and {held.shards.num_documents if held else 0:,} held out"
    )
    if len(data.rows) > len(rows):
        yield f"data {len(data.rows) - len(rows):,} rows of replayed text among them"
    for reason, count in sorted(data.counts.items()):
        if count:
            yield f"data {count:,} {reason}"
    for reason, count in sorted(held.counts.items() if held else ()):
        if count:
            yield f"data {count:,} {reason}, of those held out"


def questions_of(shards: Shards, tokenizer: Tokenizer, count: int, context: int) -> Iterator[Question]:
    """Conversations up to the assistant's first turn, at most `count`, spread over all that there are, none twice."""
    asked: set[tuple[int, ...]] = set()
    for number in permutation(shards.num_documents, "questions")(np.arange(shards.num_documents)):
        ids, said = shards.document(int(number))
        start = int(said.argmax())
        length = int((~said[start:]).argmax()) or len(said) - start
        prompt = tuple(ids[:start].tolist())
        if 0 < start < context and prompt not in asked:
            asked.add(prompt)
            expected = tokenizer.decode(ids[start : start + length].tolist(), skip_special=True)
            yield Question(tokenizer.decode(prompt), prompt, expected)
        if len(asked) == count:
            return
