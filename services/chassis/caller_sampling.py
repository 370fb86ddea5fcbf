"""How many requests a second are traced because their callers want it.

A span costs CPU here and room at the collector, and whoever may call can ask for one with each
request. What is sampled otherwise is tracing.py's.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from services.chassis.principal import RELAY, Principal
from services.chassis.trace_context import sampled_trace, unsampled


class CallerSampling:
    """A bucket for all callers of a process, which fills within a second.

    `per_second` 0 lets no caller decide. Services that relay have decided for their callers
    already: what they say is taken as it is.
    """

    __slots__ = ("_at", "_clock", "_full", "_left", "_rate")

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = per_second
        # Below one a second there is still one, now and then.
        self._left = self._full = max(per_second, 1.0) if per_second else 0.0
        self._clock = clock
        self._at = clock()

    def taken(self, traceparent: str, caller: Principal) -> str:
        """The traceparent to go by: the caller's, its sampled flag unset where that is too much."""
        if not sampled_trace(traceparent) or caller.relayed_by or RELAY in caller.scopes:
            return traceparent
        now = self._clock()
        self._left = min(self._full, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < 1.0:
            return unsampled(traceparent)
        self._left -= 1.0
        return traceparent
