"""Score a policy with lm-eval."""
