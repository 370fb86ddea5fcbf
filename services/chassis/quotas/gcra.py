"""The generic cell rate algorithm over several buckets at once. Pure: time is passed in.

The virtual scheduling of ITU-T I.371 (annex A), as Brandur's `throttled` describes it: a bucket
is one number, the theoretical arrival time, which each admitted amount moves on. Who is counted in
which bucket is gate.py's; the same arithmetic in Redis is redis_buckets.py's.

All times are whole microseconds of one clock, and what an amount takes is rounded up, so that no
window ever lets more than its burst and its rate through, however many amounts there are.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from typing import NamedTuple

PER_SECOND = 1_000_000
LONGEST = 10**15
"""A bucket is at most so far ahead, some 31 years: with today's time it is exact in Redis's
numbers, which are doubles."""


class Charge(NamedTuple):
    """An amount for one bucket: it takes `increment`, of which `tolerance` passes at once.

    An increment beyond the tolerance passes when the bucket is full, and the rest is debt.
    """

    key: str
    increment: int
    tolerance: int


def increment(amount: int, limit: int, period: int, shares: int = 1) -> int:
    """What an amount takes of a bucket that lets `limit` through in `period` seconds, in
    microseconds; of one that lets a part of it through, `shares` of which are the whole."""
    return min(-(-amount * period * PER_SECOND * shares // limit), LONGEST)


def tolerance(burst: int, limit: int, period: int) -> int:
    """How far ahead a bucket with this burst may be, in microseconds."""
    return min(burst * period * PER_SECOND // limit, LONGEST)


def wait_for(ahead: int, charge: Charge) -> int:
    """Microseconds until a bucket admits a charge, when it is so far ahead of now; 0: at once."""
    at_once = min(charge.increment, charge.tolerance)
    return max(ahead + at_once - charge.tolerance, 0)


class Buckets:
    """The buckets of one process, at most `most`: those nearest to being full are forgotten.

    One that is forgotten is full again: so nothing is lost with an idle one.
    """

    __slots__ = ("_arrivals", "_most", "_soonest")

    def __init__(self, most: int = 100_000) -> None:
        self._most = most
        self._arrivals: dict[str, int] = {}
        # An entry for each bucket, with an arrival that may be an older one.
        self._soonest: list[tuple[int, str]] = []

    def __len__(self) -> int:
        return len(self._arrivals)

    def take(self, charges: Sequence[Charge], now: int) -> tuple[int, ...]:
        """Takes all charges or none. How long each has to wait, all 0 when they were taken.

        At `now` and the longest of the waits they are admitted, if nothing else is meanwhile.
        """
        waits = tuple([wait_for(self.ahead(charge.key, now), charge) for charge in charges])
        if not any(waits):
            for charge in charges:
                self._move(charge.key, charge.increment, now)
        return waits

    def settle(self, corrections: Iterable[tuple[str, int]], now: int) -> None:
        """Moves buckets: on, by what was used beyond what was taken, which creates debt; or back,
        by what was not used. What a full bucket gets back is lost."""
        for key, change in corrections:
            if change > 0 or self.ahead(key, now):
                self._move(key, change, now)

    def ahead(self, key: str, now: int) -> int:
        """How far a bucket's theoretical arrival time is ahead; 0 when it is full."""
        return max(self._arrivals.get(key, 0) - now, 0)

    def set_ahead(self, key: str, ahead: int, now: int) -> None:
        """A bucket is so far ahead, as somebody else knows."""
        if ahead or key in self._arrivals:
            self._move(key, ahead - self.ahead(key, now), now)

    def _move(self, key: str, change: int, now: int) -> None:
        arrival = now + min(self.ahead(key, now) + change, LONGEST)
        if key not in self._arrivals:
            heapq.heappush(self._soonest, (arrival, key))
        self._arrivals[key] = arrival
        while len(self._arrivals) > self._most:
            self._forget_one()

    def _forget_one(self) -> None:
        while True:
            noted, key = self._soonest[0]
            arrival = self._arrivals[key]
            if arrival <= noted:
                heapq.heappop(self._soonest)
                del self._arrivals[key]
                return
            heapq.heapreplace(self._soonest, (arrival, key))
