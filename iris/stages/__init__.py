"""One module a stage kind. Each has `run(stage, context, claim) -> results`: it writes its files into `claim.new`."""
