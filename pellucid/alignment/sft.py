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
from pathlib import Path
from typing import Literal

import numpy as np

from pellucid.alignment.before_after import Question
from pellucid.alignment.recipe import SFTRecipe
from pellucid.alignment.templates import with_template
from pellucid.checkpoints.describe import describe
from pellucid.data.examples import Rows
from pellucid.data.mixture import Mixture
from pellucid.data.packing import Stream, Whole
from pellucid.data.prepared import Progress, prepared
from pellucid.data.shards import Shards, split
from pellucid.errors import InputError
from pellucid.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class FineTuningData:
    """What a run reads. conversations: those of `rows`, without replayed text. tokenizer: it has a chat template.

    questions: to ask the model before and after. counts: of records, by what became of them.
    """

    tokenizer: Tokenizer
    conversations: Whole
    rows: Rows
    validation: Whole | None
    questions: tuple[Question, ...]
    counts: Counter[str]


def read_data(
    recipe: SFTRecipe, *, progress: Progress | None = None, say: Callable[[str], None] | None = None
) -> FineTuningData:
    """The data of a recipe, checked; of the base model only the small files are read.

    Raises `InputError` for a base, a file or a conversation that cannot be used, by its place.
    """
    base = describe(recipe.base)
    context, longest = recipe.data.context, base.config.max_positions
    if context > longest:
        raise InputError(f"data.context = {context}: {recipe.base} holds at most {longest} tokens; make it smaller")
    tokenizer = with_template(base.tokenizer)

    def shards(
        part: str, names: Sequence[str], whose: Tokenizer, kind: Literal["conversation", "text"] = "conversation"
    ) -> Shards:
        folder = Path(recipe.run) / "data" / part
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
    replay = recipe.data.replay
    if replay is not None:
        text = Stream(shards("replay", replay.data, base.tokenizer, "text"), context, recipe.seed)
        rows = Mixture(conversations, text, replay.fraction)
    questions = (*prompts(recipe, tokenizer), *questions_of(held or train, tokenizer, recipe.report.questions, context))
    return FineTuningData(
        tokenizer,
        conversations,
        rows,
        whole(held) if held is not None else None,
        questions[: max(recipe.report.questions, len(recipe.report.prompts))],
        counts + conversations.counts,
    )


def prompts(recipe: SFTRecipe, tokenizer: Tokenizer) -> Iterator[Question]:
    """The recipe's own questions."""
    for text in recipe.report.prompts:
        messages = [{"role": "user", "content": text}]
        chat = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        yield Question(chat.text, tuple(chat.ids))


def questions_of(shards: Shards, tokenizer: Tokenizer, count: int, context: int) -> Iterator[Question]:
    """Conversations up to the assistant's first turn, at most `count`, spread over all that there are."""
    number = min(count, shards.num_documents)
    for place in np.arange(number) * shards.num_documents // max(number, 1):
        ids, said = shards.document(int(place))
        start = int(said.argmax())
        length = int((~said[start:]).argmax()) or len(said) - start
        if 0 < start < context:
            answer = tokenizer.decode(ids[start : start + length].tolist(), skip_special=True)
            asked = ids[:start].tolist()
            yield Question(tokenizer.decode(asked), tuple(asked), answer)
