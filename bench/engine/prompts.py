"""The prompts of a look: token ids, the same on every path, different in every round. Pure.

Random ids share no prefix, so that no path answers from its cache what another computes.
"""

from __future__ import annotations

import random

_LOWEST = 300
"""Below it are the bytes and marks of most vocabularies."""


def prompts(seed: str, count: int, tokens: int, vocabulary: int) -> list[list[int]]:
    """So many prompts of so many token ids each, below `vocabulary`."""
    # The same in every run; nothing secret hangs on them.
    source = random.Random(seed)  # noqa: S311
    lowest = min(_LOWEST, vocabulary // 2)
    return [[source.randrange(lowest, vocabulary) for _ in range(tokens)] for _ in range(count)]
