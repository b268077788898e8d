"""`pellucid dpo`: a model learns from which of two answers is the better one."""

from __future__ import annotations

from pellucid.cli.sft import print_comparison
from pellucid.cli.training import Overrides, RecipeFile, finish, preparing, say


def dpo(recipe: RecipeFile, overrides: Overrides = None) -> int:
    """Learn from preferences: pairs of answers of which one is better. DPO, and its relatives by dpo.loss.

    Preferences are {"prompt": ..., "chosen": ..., "rejected": ...}, a line each, text or messages; rankings are
    {"prompt", "ranked": [best, ...]} or {"prompt", "answers", "scores"}. dpo.loss is sigmoid (DPO), ipo, hinge,
    robust, conservative, simpo, orpo or kto. See the pairs before you begin: pellucid data show RECIPE.

    The recipe says everything; any field of it can be set behind it. The same command again resumes the run where it
    was stopped or killed. At the end: the answers before and after, which of two answers the model would rather give,
    and how far it has gone from its base.

    Example: pellucid dpo recipes/dpo.yaml data.train=preferences.jsonl dpo.beta=0.1
    """
    from pellucid.alignment.dpo_recipe import DPORecipe
    from pellucid.alignment.dpo_run import learn_preferences
    from pellucid.training.recipe import read_recipe

    read = read_recipe(recipe, overrides or (), DPORecipe)
    outcome, comparison = learn_preferences(read, say=say, progress=preparing())
    if comparison is not None:
        from rich.console import Console

        print_comparison(Console(highlight=False), comparison)
    return finish(outcome, read.run, f"pellucid chat {read.run}")
