"""Search a space of experiments with Optuna."""
