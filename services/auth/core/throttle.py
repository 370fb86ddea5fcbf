"""Token buckets that slow the guessing of one client's secret.

An attempt takes a token and a success gives it back, so only failures drain a
bucket. The number of buckets is bounded: the one unused longest is forgotten.
State is of this process alone; the clock is passed in.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable


class LoginThrottle:
    """At most `burst` failed attempts at once per name, then `rate` per second."""

    def __init__(
        self, *, rate: float, burst: int, clock: Callable[[], float], capacity: int = 10_000
    ) -> None:
        """`clock` returns monotonic seconds."""
        self._rate = rate
        self._burst = float(burst)
        self._clock = clock
        self._capacity = capacity
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def attempt(self, name: str) -> float:
        """Takes a token. Returns 0 if there was one, else the seconds until there is."""
        now = self._clock()
        level = self._level(name, now)
        allowed = level >= 1.0
        self._put(name, level - 1.0 if allowed else level, now)
        return 0.0 if allowed else (1.0 - level) / self._rate

    def give_back(self, name: str) -> None:
        """Gives back the token of an attempt that was no guess."""
        now = self._clock()
        level = min(self._burst, self._level(name, now) + 1.0)
        if level >= self._burst:
            self._buckets.pop(name, None)
        else:
            self._put(name, level, now)

    def _level(self, name: str, now: float) -> float:
        level, since = self._buckets.get(name, (self._burst, now))
        return min(self._burst, level + (now - since) * self._rate)

    def _put(self, name: str, level: float, now: float) -> None:
        self._buckets[name] = (level, now)
        self._buckets.move_to_end(name)
        if len(self._buckets) > self._capacity:
            self._buckets.popitem(last=False)
