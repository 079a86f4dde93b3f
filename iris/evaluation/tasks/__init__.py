"""Evaluation tasks of this package, as lm-eval YAML files: the ten tasks of the papers as the group `papers`."""
