"""Train a policy: batches, exact gradients of global batches, steps and checkpoints."""
