"""Prompts that begin alike, as those of conversations and agents do: blocks with names.

A name stands for a block and all blocks before it, as in an engine's prefix cache. The tree is
synthetic; what it shares with Mooncake's trace is the share of blocks that a cache without end
would hold already.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable
from itertools import accumulate
from random import Random

SYSTEMS = 60
"""Beginnings that many conversations share: system prompts and documents."""

SYSTEM_BLOCKS = (1, 14)
"""The least and the most blocks of one of them."""

ZIPF = 1.1
"""How unequal they are: the one of rank r is as likely as r to the power of minus this."""

FOLLOW = 0.51
"""How likely a request is to go on with an earlier one, where one is short enough; tuned so that
the hit rate is Mooncake's."""

REMEMBERED = 400
"""Conversations that may still be gone on with: the latest ones."""

TYPICAL_AGE = 80
"""After how many other requests a conversation goes on, in the mean."""

TRIES = 4
"""Conversations looked at; the longest that fits goes on, since a conversation grows little by
little."""


class PromptTree:
    """Gives each prompt of a given length its block names."""

    def __init__(self, block: int, random: Random, *, follow: float = FOLLOW) -> None:
        self._block = block
        self._random = random
        self._follow = follow
        self._next = 0
        self._open: deque[tuple[int, ...]] = deque(maxlen=REMEMBERED)
        least, most = SYSTEM_BLOCKS
        self._systems = [self._fresh(random.randint(least, most)) for _ in range(SYSTEMS)]
        self._odds = list(accumulate((rank + 1) ** -ZIPF for rank in range(SYSTEMS)))

    def prompt(self, tokens: int) -> tuple[int, ...]:
        """Names of the full blocks of the next prompt of so many tokens."""
        count = tokens // self._block
        begun = self._beginning(count)
        names = begun[:count] + self._fresh(count - len(begun))
        self._open.append(names)
        return names

    def _beginning(self, count: int) -> tuple[int, ...]:
        random, earlier = self._random, self._open
        if earlier and random.random() < self._follow:
            best: tuple[int, ...] = ()
            for _ in range(TRIES):
                # The latest are the likeliest: people answer soon or never.
                age = min(int(random.expovariate(1 / TYPICAL_AGE)), len(earlier) - 1)
                found = earlier[-1 - age]
                if len(best) < len(found) <= count:
                    best = found
            if best:
                return best
        place = bisect_left(self._odds, random.random() * self._odds[-1])
        return self._systems[min(place, SYSTEMS - 1)]

    def _fresh(self, count: int) -> tuple[int, ...]:
        first = self._next
        self._next += max(0, count)
        return tuple(range(first, self._next))


def infinite_hit_rate(prompts: Iterable[tuple[int, ...]]) -> float:
    """Which share of blocks a cache that forgets nothing would have held already."""
    seen: set[int] = set()
    hits = blocks = 0
    for names in prompts:
        blocks += len(names)
        for name in names:
            if name in seen:
                hits += 1
            else:
                seen.add(name)
    return hits / blocks if blocks else 0.0
