"""When an engine last showed that it works: the ends of its steps. Pure: the clock is passed in.

An engine that hangs keeps its port open and answers every question that its scheduler is not
needed for. What it no longer does is end steps while it has work. What follows from that is
hang_watch.py's.
"""

from __future__ import annotations

from collections.abc import Callable

_DOUBT_S = 1.0
"""Work that is taken away after a shorter silence says nothing: no step had been due."""


class Heartbeat:
    """Follows one engine's work and steps. Times are of `clock`, in seconds.

    A job that is taken away ends no silence: callers give a hung engine up long before it counts
    as hung, and without them it would look idle. It is then `in_doubt` until a step ends; somebody
    must give it work to find out.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._busy = False
        self._since: float | None = None

    @property
    def age(self) -> float:
        """Seconds since a step ended or work came, whichever is later; 0 where none is expected."""
        since = self._since
        return 0.0 if since is None else max(0.0, self._clock() - since)

    @property
    def in_doubt(self) -> bool:
        """Whether all work was taken away during a silence that no step has ended since."""
        return self._since is not None and not self._busy

    def begins(self) -> None:
        """There is work, where there was none."""
        self._busy = True
        if self._since is None:
            self._since = self._clock()

    def ends(self) -> None:
        """There is no work any more: done in the step that is about to be closed, or taken away."""
        self._busy = False
        if self.age < _DOUBT_S:
            self._since = None

    def beat(self) -> None:
        """A step has ended, whatever it computed: the engine's loop goes round."""
        self._since = self._clock() if self._busy else None

    def rest(self) -> None:
        """No step is due: what silence there was says nothing of what comes after."""
        self._since = self._clock() if self._busy else None

    def excuse(self, seconds: float) -> None:
        """So long this process itself did not run, and could have heard of no step."""
        if self._since is not None:
            self._since += seconds
