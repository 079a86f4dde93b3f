"""Turn missing stages into jobs and run them here or on Slurm."""
