"""Pretraining: a model of text from nothing but text. Tokenizer, shards, model, loop.

L = - sum over t of log p(x_t | x_<t) / T        (Bengio et al. 2003, section 2; Radford et al. 2018, eq. 1)
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pellucid.checkpoints.atomic import atomic_folder
from pellucid.checkpoints.describe import describe
from pellucid.data.examples import Batches
from pellucid.data.packing import Stream
from pellucid.data.prepared import Progress, prepared
from pellucid.data.shards import Shards, split
from pellucid.data.sources import read_records
from pellucid.errors import InputError
from pellucid.models.config import ModelConfig
from pellucid.models.decoder import Decoder
from pellucid.tokenizer.tokenizer import Tokenizer
from pellucid.tokenizer.train import train_bpe
from pellucid.training.expected import announced
from pellucid.training.loop import Outcome, Sample, Trainer
from pellucid.training.method import Supervised
from pellucid.training.ranks import Ranks, join
from pellucid.training.recipe import DataRecipe, PretrainRecipe, TrainRecipe
from pellucid.training.run import TOKENIZER, RunFolder, agreed_checkpoint
from pellucid.training.schedules import scale
from pellucid.training.setting import choose_setting

# Of a tokenizer trained here. The last two are for conversations, which come later and then find their tokens ready.
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
Say = Callable[[str], None]


def pretrain(
    recipe: PretrainRecipe, *, sample: Sample | None = None, say: Say = print, progress: Progress | None = None
) -> Outcome:
    """Runs the recipe, or goes on with it where its run folder has got to; the model is in `final/` then.

    sample: continues the recipe's prompts at each evaluation. say: is told what was found and chosen, a line each.
    progress: of making tokenizer and shards, `(phase, done, of)`.
    Raises `InputError` for anything in the recipe or its files that cannot be, before the model is made.
    """
    config_of(recipe, vocab_size=recipe.tokenizer.vocab_size)  # what is wrong with it is said at once
    if recipe.train.steps is not None:
        scale(recipe.optim, 0, recipe.train.steps)
    with join() as ranks:
        run = RunFolder.open(recipe.run, recipe) if ranks.first else None
        tell: Say = say if ranks.first else lambda _: None
        try:
            tokenizer, train, validation = read_data(recipe, ranks, tell, progress)
            rows = rows_of(train, recipe)
            model = Decoder(config_of(recipe, tokenizer.vocab_size), recipe.seed)
            steps = steps_of(recipe.train, rows)
            checkpoint = agreed_checkpoint(recipe.run, ranks)
            recorded = checkpoint.state["setting"] if checkpoint else None
            setting = choose_setting(recipe, model.config, steps, ranks, recorded)
            for line in (*announced(recipe.expect), *described(train, validation, model), *setting.reasons):
                tell(line)
            if checkpoint is not None:
                tell(f"going on after step {checkpoint.step:,}")
            trainer = Trainer(
                recipe, model.to(setting.device), tokenizer, Supervised(rows), steps, setting, run, train.content,
                checkpoint, validation=whole_rows(validation, recipe.data), sample=sample, ranks=ranks,
            )  # fmt: skip
            return trainer.train()
        finally:
            if run is not None:
                run.close()


def config_of(recipe: PretrainRecipe, vocab_size: int) -> ModelConfig:
    """The recipe's model. Its context holds a row of training, more if the recipe says so."""
    if "vocab_size" in recipe.model:
        raise InputError("model.vocab_size follows the tokenizer: leave it out, and set tokenizer.vocab_size")
    fields: dict[str, Any] = {"max_positions": recipe.data.context, **recipe.model}
    config = ModelConfig(**{**fields, "vocab_size": vocab_size})
    if config.max_positions < recipe.data.context:
        raise InputError(
            f"model.max_positions = {config.max_positions} is less than data.context = {recipe.data.context}: "
            "make it as large at least"
        )
    return config


def rows_of(train: Shards, recipe: PretrainRecipe) -> Stream:
    """The rows of the run. `InputError`: they do not fill one batch, so that every step would read all of the text."""
    rows = Stream(train, recipe.data.context, recipe.seed)
    if len(rows) < recipe.train.batch:
        raise InputError(
            f"the training text gives {len(rows)} rows of {recipe.data.context} tokens, which do not fill one batch of "
            f"{recipe.train.batch}: give more text, or a smaller train.batch or data.context"
        )
    return rows


def steps_of(train: TrainRecipe, rows: Batches) -> int:
    """How many steps the recipe asks for."""
    if train.steps is not None:
        return train.steps
    assert train.epochs is not None
    return math.ceil(train.epochs * len(rows) / train.batch)


def whole_rows(validation: Shards | None, data: DataRecipe) -> Stream | None:
    """Validation text in its own order; None where there is none, or not enough to fill a row."""
    if validation is None or validation.num_tokens < data.context:
        return None
    return Stream(validation, data.context, 0, shuffle=False)


def described(train: Shards, validation: Shards | None, model: Decoder) -> Iterator[str]:
    """What a run is made of, a line each."""
    held = f", {validation.num_tokens:,} for validation" if validation is not None else ", none for validation"
    yield f"data {train.num_documents:,} documents, {train.num_tokens:,} tokens{held}"
    for reason, count in sorted(train.index.counts.items()):
        yield f"data {count:,} {reason}"
    yield f"model {sum(p.numel() for p in model.parameters()):,} parameters"


def read_data(
    recipe: PretrainRecipe, ranks: Ranks, say: Say, progress: Progress | None
) -> tuple[Tokenizer, Shards, Shards | None]:
    """Tokenizer and shards, made by the first process; the others wait, and find them."""
    if not ranks.first:
        ranks.agree(None)
    tokenizer = _tokenizer(recipe, progress)

    def shards(part: str, names: Sequence[str]) -> Shards:
        folder, skip = Path(recipe.run).expanduser() / "data" / part, recipe.data.skip_bad
        return prepared(names, tokenizer, folder, "text", skip_bad=skip, progress=progress, say=say)

    train = shards("train", recipe.data.train)
    if recipe.data.validation:
        pair: tuple[Shards, Shards | None] = train, shards("validation", recipe.data.validation)
    else:
        pair = split(train, recipe.data.validation_fraction, recipe.seed)
    if ranks.first:
        ranks.agree(None)
    return tokenizer, *pair


def _tokenizer(recipe: PretrainRecipe, progress: Progress | None) -> Tokenizer:
    """The tokenizer that the recipe names, or that of the run, which is trained when the run begins."""
    if recipe.tokenizer.path is not None:
        path = Path(recipe.tokenizer.path).expanduser()
        given = path.is_file() or (path / "tokenizer.json").is_file()
        return Tokenizer.load(path) if given else describe(recipe.tokenizer.path).tokenizer
    folder = Path(recipe.run).expanduser() / TOKENIZER
    if not folder.is_dir():
        counts: Counter[str] = Counter()
        names, skip = recipe.data.train, recipe.data.skip_bad
        records = read_records(names, wanted="text", skip_bad=skip, counts=counts)
        texts = (record.content for record in records)
        size = recipe.tokenizer.vocab_size
        trained = train_bpe(texts, size, special_tokens=SPECIAL, progress=progress)
        with atomic_folder(folder) as temporary:
            trained.tokenizer().save(temporary)
    return Tokenizer.load(folder)
