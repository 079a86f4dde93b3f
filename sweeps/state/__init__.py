"""Record launches and tell the state of jobs and experiments."""
