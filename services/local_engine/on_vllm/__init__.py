"""vLLM behind the `Engine` protocol: the only room that may import vLLM and what comes with it.

`engine` loads it; most of the others are duck-typed and importable without it.
"""
