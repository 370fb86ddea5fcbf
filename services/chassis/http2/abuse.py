"""How much of a peer's frames may lead to nothing before its connection is ended.

Pings, settings, resets, empty frames: each costs the reader about as much as a request
does, so a flood of them is an attack (CVE-2019-9511 to 9518, CVE-2023-44487). A
leaking bucket tells a flood from traffic. Pure: the clock is passed in.
"""

from __future__ import annotations

from collections.abc import Callable

_BURST = 2000.0
_PER_SECOND = 500.0
_PING_STRIKES = 3


class Patience:
    """What one connection may still do that leads to nothing."""

    __slots__ = ("_allowed", "_clock", "_last", "_last_ping", "_ping_interval", "_strikes")

    def __init__(self, clock: Callable[[], float], ping_interval: float) -> None:
        self._clock = clock
        self._allowed = _BURST
        self._last = clock()
        self._ping_interval = ping_interval
        self._last_ping = -ping_interval
        self._strikes = 0

    def bears(self, cost: float = 1.0) -> bool:
        """Counts one such frame; false when it was one too many."""
        self._allowed -= cost
        if self._allowed >= 0.0:
            return True
        now = self._clock()
        self._allowed = min(_BURST, self._allowed + (now - self._last) * _PER_SECOND)
        self._last = now
        return self._allowed >= 0.0

    def bears_ping(self) -> bool:
        """Counts a ping; false at the third that came too early after the one before."""
        now = self._clock()
        early = now - self._last_ping < self._ping_interval
        self._last_ping = now
        if not early:
            return self.bears()
        self._strikes += 1
        return self._strikes < _PING_STRIKES and self.bears()

    def useful(self) -> None:
        """Data or a whole answer was sent: the peer may answer it with a frame or two."""
        self._strikes = 0
        if self._allowed < _BURST:
            self._allowed += 2.0
