"""`pellucid grpo`: a model learns from rewards for its own answers, each compared with others to the same prompt."""

from __future__ import annotations

from pellucid.cli.sft import print_comparison
from pellucid.cli.training import Overrides, RecipeFile, finish, say


def grpo(recipe: RecipeFile, overrides: Overrides = None) -> int:
    """Learn from rewards for one's own answers, without a value model: GRPO, Dr. GRPO or DAPO by grpo.normalise.

    Prompts are {"prompt": text or messages, ...}, a line each, or conversations; their other fields go to the rewards.
    A reward is exact, number, equations, think_format, pattern, tinyworld, sentiment or code, or a Python function of
    yours as module:function or file.py:function, called as TRL calls them; several are added up.

    The recipe says everything; any field of it can be set behind it. The same command again resumes the run where it
    was stopped or killed. samples.jsonl in the run folder has answers of every step with what they earned.

    Example: pellucid grpo recipes/grpo.yaml rewards=mine.py:short rollouts.answers=16
    """
    from pellucid.alignment.grpo import train_grpo
    from pellucid.alignment.grpo_recipe import GRPORecipe
    from pellucid.training.recipe import read_recipe

    read = read_recipe(recipe, overrides or (), GRPORecipe)
    outcome, comparison = train_grpo(read, say=say)
    if comparison is not None:
        from rich.console import Console

        print_comparison(Console(highlight=False), comparison)
    return finish(outcome, read.run, f"pellucid chat {read.run}")
