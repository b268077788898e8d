"""`pellucid ppo`: a model learns from rewards for its own answers, with a value model beside it."""

from __future__ import annotations

from pellucid.cli.sft import print_comparison
from pellucid.cli.training import Overrides, RecipeFile, finish, say


def ppo(recipe: RecipeFile, overrides: Overrides = None) -> int:
    """Learn from rewards for one's own answers, as InstructGPT did: PPO with a value model and a reference policy.

    What an answer earns says a reward model (reward_model: a run of pellucid reward), reward functions as for pellucid
    grpo, or both together; how far the policy goes from its base costs ppo.beta a nat. The value model begins as
    ppo.value, best the reward model, else as the base.

    The recipe says everything; any field of it can be set behind it. The same command again resumes the run where it
    was stopped or killed. samples.jsonl in the run folder has answers of every step with what they earned.

    Example: pellucid ppo recipes/ppo.yaml reward_model=runs/reward ppo.value=runs/reward
    """
    from pellucid.alignment.ppo import train_ppo
    from pellucid.alignment.ppo_recipe import PPORecipe
    from pellucid.training.recipe import read_recipe

    read = read_recipe(recipe, overrides or (), PPORecipe)
    outcome, comparison = train_ppo(read, say=say)
    if comparison is not None:
        from rich.console import Console

        print_comparison(Console(highlight=False), comparison)
    return finish(outcome, read.run, f"pellucid chat {read.run}")
