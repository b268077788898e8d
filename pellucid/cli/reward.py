"""`pellucid reward`: a model that gives answers a number, from preferences."""

from __future__ import annotations

from pellucid.cli.training import Overrides, RecipeFile, finish, preparing, say


def reward(recipe: RecipeFile, overrides: Overrides = None) -> int:
    """Train a reward model on preferences: it learns to give the better of two answers the higher number.

    Preferences are {"prompt": ..., "chosen": ..., "rejected": ...}, a line each, or rankings of several answers:
    {"prompt": ..., "ranked": [best, ..., worst]}. All answers to a prompt are learnt from together, each scored once.

    The run folder is a reward model: pellucid ppo takes it, pellucid prefer judges with it, and transformers opens
    final/ as a model for sequence classification. At the end, on pairs held out: how often it is right, whether it is
    as sure as it is right, and whether it pays for length (report.md, reward.svg). The same command again resumes.

    Example: pellucid reward recipes/reward.yaml data.train=preferences.jsonl
    """
    import typer

    from pellucid.alignment.reward import train_reward_model
    from pellucid.alignment.reward_recipe import RewardRecipe
    from pellucid.alignment.reward_report import summary
    from pellucid.training.recipe import read_recipe

    read = read_recipe(recipe, overrides or (), RewardRecipe)
    outcome, report = train_reward_model(read, say=say, progress=preparing())
    for line in () if report is None else summary(report):
        typer.echo(line)
    return finish(outcome, read.run, f"pellucid prefer MODEL --judge {read.run}")
