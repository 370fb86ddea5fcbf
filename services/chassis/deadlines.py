"""Deadlines of many requests, most of which end long before them. Knows nothing of requests.

A timer of the loop costs microseconds to set and to cancel; deadlines that lie close together
share one here, and what has ended is struck off a set.
"""

from __future__ import annotations

import asyncio
from heapq import heappop, heappush
from typing import Protocol

NEAR_S = 10.0
NEAR_GRAIN_S = 0.01
FAR_GRAIN_S = 0.1


class Expiring(Protocol):
    """What has a deadline."""

    def expire(self) -> None:
        """Its time is over."""


Due = set[Expiring]


class Deadlines:
    """Calls `expire` once a deadline has passed, on the clock of `loop`.

    Never early, and late by at most a grain: NEAR_GRAIN_S for what is due within NEAR_S,
    else FAR_GRAIN_S.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.now = loop.time
        # By grain, in units of the near one; an empty set stays until it is the first.
        self._due: dict[int, Due] = {}
        self._order: list[int] = []
        self._timer: asyncio.TimerHandle | None = None
        self._armed_for = 0

    def add(self, item: Expiring, deadline: float, now: float) -> Due:
        """Waits for a deadline; to wait no more, the item is taken out of the returned set."""
        grain = int(deadline * _PER_SECOND) + 1
        if deadline - now > NEAR_S:
            grain += -grain % _FAR
        due = self._due.get(grain)
        if due is None:
            due = self._due[grain] = set()
            heappush(self._order, grain)
        due.add(item)
        if self._timer is None or grain < self._armed_for:
            self._arm()
        return due

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._order and not self._due[self._order[0]]:
            del self._due[heappop(self._order)]
        if self._order:
            self._armed_for = self._order[0]
            self._timer = self._loop.call_at(self._armed_for / _PER_SECOND, self._ring)

    def _ring(self) -> None:
        self._timer = None
        # At least what the timer was for, however the clock's fractions are rounded.
        now = max(int(self._loop.time() * _PER_SECOND), self._armed_for)
        while self._order and self._order[0] <= now:
            for item in tuple(self._due.pop(heappop(self._order))):
                item.expire()
        self._arm()


_PER_SECOND = round(1 / NEAR_GRAIN_S)
_FAR = round(FAR_GRAIN_S / NEAR_GRAIN_S)
