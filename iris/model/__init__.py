"""Load, save and adapt policies; tokenize prompts and responses; compute log-probabilities."""
