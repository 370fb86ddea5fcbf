"""When a key is left alone, and when it is tried again. Pure; the time now is passed in.

Two forms: a rest that grows each time, and a breaker that rests after failures in a row and then
lets one attempt through at a time. Knows neither keys nor providers. Times are in seconds.
"""

from __future__ import annotations

# Sums of times round; what is due within a microsecond is due.
ROUNDING = 1e-6


class Rest:
    """A time of rest that doubles from `first` to `most` each time it is needed again."""

    __slots__ = ("_first", "_most", "seconds", "until")

    def __init__(self, first: float, most: float) -> None:
        self._first = first
        self._most = most
        self.seconds = 0.0
        self.until = 0.0

    def left(self, now: float) -> float:
        """How much longer; 0 when it is over."""
        left = self.until - now
        return left if left > ROUNDING else 0.0

    def begin(self, now: float) -> None:
        """Rests from now on. What was already under way when a rest began does not prolong it."""
        if self.left(now):
            return
        self.seconds = min(max(self.seconds * 2, self._first), self._most)
        self.until = now + self.seconds

    def forget(self, now: float) -> None:
        """All is well, so that the next rest is short again. One that runs is not cut short: what
        succeeds meanwhile was begun before it."""
        if not self.left(now):
            self.seconds = 0.0


class KeyBreaker:
    """Opens after `_FAILURES` in a row; then one probe at a time until one succeeds."""

    __slots__ = ("_failures", "_probe_until", "_rest")

    _FAILURES = 5

    def __init__(self) -> None:
        self._rest = Rest(5.0, 60.0)
        self._failures = 0
        self._probe_until = 0.0

    @property
    def closed(self) -> bool:
        """Whether attempts go through freely."""
        return self._failures < self._FAILURES

    def left(self, now: float) -> float:
        """Seconds until an attempt may be made; 0 when one may now."""
        if self.closed:
            return 0.0
        left = max(self._rest.until, self._probe_until) - now
        return left if left > ROUNDING else 0.0

    def enter(self, now: float) -> float:
        """An attempt begins; what it returns goes to `leave`.

        While not closed, the attempt holds the one place of a probe, for as long as the last rest
        was: an answer that streams for minutes does not keep others away that long.
        """
        if self.closed:
            return 0.0
        self._probe_until = now + self._rest.seconds
        return self._probe_until

    def leave(self, place: float) -> None:
        """An attempt is over, however it ended."""
        if place and place == self._probe_until:
            self._probe_until = 0.0

    def good(self, now: float) -> None:
        """The provider answered."""
        if self._rest.left(now):
            # From before it opened; the probe is to tell.
            return
        self._failures = 0
        self._rest.forget(now)

    def failed(self, now: float) -> None:
        """An attempt failed in a way that another one may, too."""
        self._failures = min(self._failures + 1, self._FAILURES)
        if not self.closed:
            self._rest.begin(now)
