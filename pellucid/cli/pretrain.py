"""`pellucid pretrain`: a model of text from nothing but text."""

from __future__ import annotations

from pellucid.cli.training import Overrides, RecipeFile, finish, preparing, sample, say


def pretrain(recipe: RecipeFile, overrides: Overrides = None) -> int:
    """Train a model on text, from nothing: tokenizer, data, model, all of it in one run folder.

    The recipe says everything; any field of it can be set behind it. The same command again resumes the run where it
    was stopped or killed. The run folder is a model: chat, generate, show, convert and sft take its name.

    Several processes: torchrun --nproc-per-node 2 -m pellucid pretrain RECIPE; the result is the same.

    Example: pellucid pretrain recipes/pretrain-tiny.yaml data.train=book.txt optim.lr=3e-4
    """
    from pellucid.training.pretrain import pretrain as run_it
    from pellucid.training.recipe import PretrainRecipe, read_recipe

    read = read_recipe(recipe, overrides or (), PretrainRecipe)
    outcome = run_it(read, sample=sample, say=say, progress=preparing())
    return finish(outcome, read.run, f"pellucid generate {read.run} -p '...'")
