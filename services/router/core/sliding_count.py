"""Counts events of the last seconds, in a ring of buckets. It keeps no single event.

The window moves in steps of a tenth of its length, so that between 90 and 100 % of it is
counted. Every call is O(1); memory is ten integers.
"""

from __future__ import annotations

BUCKETS = 10


class SlidingCount:
    """How many events there were within the last `window` seconds."""

    __slots__ = ("_buckets", "_index", "_per_bucket", "_tick", "_total")

    def __init__(self, window: float) -> None:
        """`window` is in seconds and positive; ValueError otherwise."""
        if not window > 0.0:
            raise ValueError(f"a window of {window} s counts nothing")
        self._per_bucket = BUCKETS / window
        self._buckets = [0] * BUCKETS
        self._tick = 0
        self._index = 0
        self._total = 0

    def add(self, now: float) -> None:
        """One event happened. A clock that steps back counts it as the latest."""
        tick = int(now * self._per_bucket)
        if tick > self._tick:
            self._turn(tick)
        self._buckets[self._index] += 1
        self._total += 1

    def total(self, now: float) -> int:
        """The events of the window that ends now."""
        tick = int(now * self._per_bucket)
        if tick > self._tick:
            self._turn(tick)
        return self._total

    def clear(self) -> None:
        """Forgets every event."""
        self._buckets = [0] * BUCKETS
        self._total = 0

    def _turn(self, tick: int) -> None:
        if tick - self._tick >= BUCKETS:
            self.clear()
        else:
            buckets = self._buckets
            for passed in range(self._tick + 1, tick + 1):
                index = passed % BUCKETS
                self._total -= buckets[index]
                buckets[index] = 0
        self._tick = tick
        self._index = tick % BUCKETS
