"""Sample responses from a policy."""
