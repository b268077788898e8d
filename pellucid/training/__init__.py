"""Training: recipes, the loop, optimizers and schedules, the run folder."""
