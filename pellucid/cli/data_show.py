"""`pellucid data show`: rows as a recipe trains on them, with what is learnt from in colour (promise D6)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from pellucid.cli.training import Overrides, RecipeFile
from pellucid.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from pellucid.alignment.dpo_recipe import DPORecipe
    from pellucid.alignment.recipe import SFTRecipe
    from pellucid.alignment.reward_recipe import RewardRecipe
    from pellucid.data.examples import Batches, Examples
    from pellucid.data.shown import Span
    from pellucid.tokenizer.tokenizer import Tokenizer
    from pellucid.training.recipe import PretrainRecipe

LEARNT, SPECIAL, REST, BORDER = "bold green", "cyan", "dim", "yellow"
WORSE = "bold red"  # the answer of a pair that is not to be given
OPEN, CLOSE = "⟦", "⟧"  # around what is learnt from, where there are no colours


@dataclass(frozen=True, slots=True)
class Material:
    """What a run reads: its rows, the tokenizer that made them, and the records by what became of them."""

    rows: Batches
    tokenizer: Tokenizer
    counts: Counter[str]


def show(
    recipe: RecipeFile,
    overrides: Overrides = None,
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="How many rows.")] = 3,
    first: Annotated[
        int, typer.Option("--first", min=0, help="The row to begin with; step s reads from row (s - 1) x batch on.")
    ] = 0,
) -> None:
    """Show rows as the model is trained on them: documents, borders, padding, and the tokens that it learns from.

    These are the very rows of the run: from its folder where it has begun, else made in a temporary one. Of a recipe of
    pellucid dpo without a section dpo say dpo.loss=sigmoid, or it is read as one of pellucid sft.
    Example: pellucid data show recipes/sft-smollm2.yaml data.context=256 -n 2
    """
    from rich.console import Console

    from pellucid.cli.running import note

    with in_its_place(read(Path(recipe), overrides or [])) as placed:
        material = read_material(placed)
        rows = material.rows
        note(f"rows of {rows.context:,} tokens, {len(rows):,} an epoch; records {said(material.counts)}")
        examples, pairs = tokens_of(rows, range(first, first + number))
    console = Console()
    for row in range(number):
        print_row(examples, row, first + row, material.tokenizer, console, pairs=pairs)
    print_sum(examples, console)


Known: TypeAlias = "DPORecipe | RewardRecipe | SFTRecipe | PretrainRecipe"


def tokens_of(rows: Batches, indices: range) -> tuple[Examples, bool]:
    """These rows, and whether their documents are pairs of answers."""
    from pellucid.data.examples import Examples
    from pellucid.data.pairs import Pairs
    from pellucid.data.rankings import Rankings

    if isinstance(rows, Rankings):
        return rows.read(indices).examples, False
    if isinstance(rows, Pairs):
        found = rows.read(indices)
        return Examples(found.tokens, found.targets, found.positions, found.documents), True
    examples = rows.read(indices)
    assert isinstance(examples, Examples)
    return examples, False


def read(path: Path, overrides: list[str]) -> Known:
    """The recipe, of whichever kind it is: one on preferences has a section `dpo` or `reward`, any fine-tuning names
    its base."""
    from pellucid.alignment.dpo_recipe import DPORecipe
    from pellucid.alignment.recipe import SFTRecipe
    from pellucid.alignment.reward_recipe import RewardRecipe
    from pellucid.training.recipe import PretrainRecipe, read_recipe

    sections = sections_of(path) | {override.partition(".")[0] for override in overrides}
    drawing = next((name for name in ("grpo", "ppo", "constitution") if name in sections), None)
    if drawing is not None:
        raise InputError(
            f"{path}: the answers that pellucid {drawing} learns from are drawn while it runs, so there are no rows "
            "yet: show a recipe of pellucid pretrain, sft, dpo or reward"
        )
    if "dpo" in sections:
        return read_recipe(path, overrides, DPORecipe)
    if "reward" in sections:
        return read_recipe(path, overrides, RewardRecipe)
    if "base" in sections:
        return read_recipe(path, overrides, SFTRecipe)
    return read_recipe(path, overrides, PretrainRecipe)


@contextmanager
def in_its_place(recipe: Known) -> Iterator[Known]:
    """The recipe, with the run's folder for its data if that was begun with this recipe, else with a passing one.

    What is only looked at leaves nothing that a run with another recipe could find.
    """
    from pellucid.checkpoints.source import RUN_RECIPE
    from pellucid.training.recipe import read_recipe
    from pellucid.training.run import compare

    begun = Path(recipe.run).expanduser() / RUN_RECIPE
    if begun.is_file():
        try:
            was = read_recipe(begun, (), type(recipe))
        except InputError:  # a run of another kind
            was = None
        if was is not None and not compare(was.model_dump(mode="json"), recipe.model_dump(mode="json")):
            yield recipe
            return
    with TemporaryDirectory() as folder:
        yield recipe.model_copy(update={"run": folder})


def read_material(recipe: Known) -> Material:
    """The rows of a recipe. Raises InputError for data that cannot be used."""
    from pellucid.alignment import dpo_run, reward, sft
    from pellucid.alignment.dpo_recipe import DPORecipe
    from pellucid.alignment.recipe import SFTRecipe
    from pellucid.alignment.reward_recipe import RewardRecipe
    from pellucid.cli.running import note
    from pellucid.cli.training import preparing
    from pellucid.data.packing import Stream
    from pellucid.training import pretrain
    from pellucid.training.ranks import Ranks

    if isinstance(recipe, DPORecipe):
        preferences = dpo_run.read_data(recipe, say=note, progress=preparing())
        return Material(preferences.pairs, preferences.tokenizer, preferences.counts)
    if isinstance(recipe, RewardRecipe):
        compared = reward.read_data(recipe, say=note, progress=preparing())
        return Material(compared.train, compared.tokenizer, compared.counts)
    if isinstance(recipe, SFTRecipe):
        data = sft.read_data(recipe, say=note, progress=preparing())
        return Material(data.rows, data.tokenizer, data.counts)
    tokenizer, train, _ = pretrain.read_data(recipe, Ranks(), note, preparing())
    return Material(Stream(train, recipe.data.context, recipe.seed), tokenizer, Counter(train.index.counts))


def sections_of(path: Path) -> set[str]:
    """The recipe's outermost fields; of one that cannot be read none: `read_recipe` says why."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return set()
    return set(content) if isinstance(content, dict) else set()


def said(counts: Counter[str]) -> str:
    return ", ".join(f"{what} ({count:,})" for what, count in sorted(counts.items()) if count) or "none counted"


def print_row(
    examples: Examples, row: int, index: int, tokenizer: Tokenizer, console: Console, *, pairs: bool = False
) -> None:
    """A row: a line about it, then each piece of a document under a line about that.

    pairs: the documents are answers in twos, the better one first.
    """
    from pellucid.data.shown import pieces_of, spans_of

    pieces = pieces_of(examples, row)
    context = examples.tokens.shape[1]
    used = sum(len(piece.tokens) for piece in pieces)
    supervised = sum(piece.supervised for piece in pieces)
    line = f"row {index:,}: {context:,} tokens, {supervised:,} learnt from, {context - used:,} padding"
    console.print(line, style="bold", highlight=False, markup=False, soft_wrap=True)
    for number, piece in enumerate(pieces, 1):
        worse = pairs and number % 2 == 0
        what = f"document {number} of {len(pieces)}"
        if pairs:
            what = f"pair {(number + 1) // 2} of {len(pieces) // 2}, {'rejected' if worse else 'chosen'}"
        border = f"── {what}: {len(piece.tokens):,} tokens, {piece.supervised:,} learnt"
        console.print(border, style=BORDER, highlight=False, markup=False, soft_wrap=True)
        text = in_colour(spans_of(piece, tokenizer), console.is_terminal, WORSE if worse else LEARNT)
        console.print(text, soft_wrap=True, highlight=False)


def in_colour(spans: Iterator[Span], terminal: bool, colour: str = LEARNT) -> Text:
    """What is learnt from in green (`colour`), control tokens underlined; without a terminal, between ⟦ and ⟧."""
    from rich.text import Text

    text, inside = Text(), False
    for span in spans:
        if not terminal and span.learnt != inside:
            text.append(OPEN if span.learnt else CLOSE)
            inside = span.learnt
        style = colour if span.learnt else SPECIAL if span.special else REST
        content = silenced(span.text)
        text.append(content, f"{style} underline" if span.special else style)
    if inside and not terminal:
        text.append(CLOSE)
    return text


def silenced(text: str) -> str:
    """Text of data or of a model, which must not speak to the terminal."""
    return text.replace("\x1b", "␛").replace("\x9b", "␛")


def print_sum(examples: Examples, console: Console) -> None:
    from pellucid.layers.batch import PADDING

    tokens, padding = examples.tokens.numel(), int((examples.documents == PADDING).sum())
    supervised = examples.supervised
    line = f"in all {tokens:,} tokens: {supervised:,} learnt from ({supervised / tokens:.0%}), {padding:,} padding"
    console.print(line, style="bold", highlight=False, markup=False, soft_wrap=True)
