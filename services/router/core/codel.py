"""When a standing line must be shortened by one. It holds no line: it is told of waits.

Source: CoDel (Nichols and Jacobson 2012, RFC 8289). A wait above the target is no harm by
itself: a burst makes one. Waits that never fell below the target for a whole interval are a
standing line, which helps nobody: then one is shed, and as long as it stands the next one after
interval / √count.

Requests are not packets, so three things are added. A request is dearer: a line that got shorter
over the last interval, because more were served than came, drains by itself and is left alone.
Callers do not slow down when one of them is shed, as TCP does: the count begins where the law's
rate equals the growth of the line, which it would take minutes to reach. And a controller that
is asked late makes up for one interval at most.
"""

from __future__ import annotations

from math import inf, sqrt

REMEMBERED_INTERVALS = 16.0
"""A line that stands again within so many intervals is shed at about its former rate."""


class CoDel:
    """The controller of one line; times are in seconds on one monotonic clock."""

    __slots__ = (
        "_count",
        "_fine_at",
        "_last_shed",
        "_marked_at",
        "_marked_net",
        "_net",
        "_next_shed",
        "_shedding",
        "interval",
    )

    def __init__(self, interval: float) -> None:
        self.interval = interval
        self._next_shed = inf  # while waits are not above their targets
        self._fine_at = -inf
        self._shedding = False
        self._count = 0
        self._last_shed = -inf
        self._net = 0
        self._marked_net = 0
        self._marked_at = -inf

    def joined(self) -> None:
        """The line got longer by one."""
        self._net += 1

    def served(self, now: float, wait: float, target: float) -> None:
        """The line got shorter by one, which had waited so long."""
        self._net -= 1
        if wait < target:
            self.fine(now)

    def fine(self, now: float) -> None:
        """A wait is below its target, or the line is too short to speak of one that stands."""
        self._fine_at = now
        self._next_shed = inf

    def observe(self, now: float, overdue_since: float) -> None:
        """The one that waits longest reached its target at `overdue_since`, maybe in the future."""
        if overdue_since > now:
            self.fine(now)
        elif self._next_shed == inf:
            self._next_shed = max(overdue_since, self._fine_at) + self.interval
            self._shedding = False
            self._mark(now)

    def next_look(self, overdue_since: float) -> float:
        """When one may have to be shed if nothing happens until then; see observe."""
        if self._next_shed != inf:
            return self._next_shed
        return max(overdue_since, self._fine_at) + self.interval

    def sheds(self, now: float) -> bool:
        """Whether one is to be shed now. To be asked again, after an observation, until false."""
        if now < self._next_shed:
            return False
        growth = self._growth(now)
        if growth < 0.0:
            self._next_shed = now + self.interval
            return False
        if self._shedding:
            self._count += 1
        else:
            self._shedding = True
            recent = now - self._last_shed < REMEMBERED_INTERVALS * self.interval
            self._count = max(self._count // 2, 1) if recent else 1
        self._count = max(self._count, int(growth * growth))
        self._last_shed = now
        late = max(self._next_shed, now - self.interval)
        self._next_shed = late + self.interval / sqrt(self._count)
        return True

    def _growth(self, now: float) -> float:
        """By how many the line grew per interval, but for sheds; 0 until most of one has passed."""
        elapsed = now - self._marked_at
        if elapsed < 0.9 * self.interval:
            return 0.0
        growth = (self._net - self._marked_net) * self.interval / elapsed
        self._mark(now)
        return growth

    def _mark(self, now: float) -> None:
        self._marked_at = now
        self._marked_net = self._net
