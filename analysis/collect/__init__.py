"""Collect finished experiments of a store into pandas frames."""
