"""Compare methods: scores by seed, intervals and tests."""
