"""Benchmarks. Each runs its baselines in the same run: a ratio is the claim, not a number."""
