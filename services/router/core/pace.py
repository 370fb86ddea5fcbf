"""How fast a line is served: the mean time from one departure to the next while anyone waits.

An exponentially weighted mean, unknown until enough departures were seen and forgotten after
an idle while, since a guess from other times would turn requests away that could be served.
"""

from __future__ import annotations

from math import inf

GAIN = 0.1
ENOUGH = 8
FORGOTTEN_AFTER_S = 10.0


class Pace:
    """The pace of one line; `now` is in seconds on one monotonic clock."""

    __slots__ = ("_gap", "_seen", "_since")

    def __init__(self) -> None:
        self._gap = 0.0
        self._seen = 0
        self._since = -inf

    @property
    def gap(self) -> float | None:
        """Seconds from one departure to the next; None while unknown."""
        return self._gap if self._seen >= ENOUGH else None

    def began(self, now: float) -> None:
        """Somebody waits where nobody did: time without a line says nothing about its pace."""
        if now - self._since > FORGOTTEN_AFTER_S:
            self._seen = 0
        self._since = now

    def served(self, now: float) -> None:
        """One left the line because there was capacity."""
        self._seen += 1
        gain = max(1.0 / self._seen, GAIN)
        self._gap += gain * (now - self._since - self._gap)
        self._since = now
