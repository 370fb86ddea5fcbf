"""The sim engine: the contract without a model, for tests, benchmarks and the routing lab."""
