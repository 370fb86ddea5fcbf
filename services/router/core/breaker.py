"""Leaves a failing backend alone, and tries it again with one request at a time.

It decides from outcomes that the shell reports; a caller's own mistake is no outcome, and the
shell does not report it. How long a failure took plays no part: to fail fast earns nothing.

Sources: consecutive failures, failure share and growing rests as in Envoy's outlier detection
(consecutive_5xx, failure percentage with a request minimum, base and max ejection time); the three
states are those of Nygard's "Release It!"; outcomes carry the generation of their sending,
as in gobreaker, so that what was sent before an opening says nothing about the time after it.
"""

from __future__ import annotations

from enum import Enum
from math import inf

from services.router.core.policy import BreakerRules
from services.router.core.sliding_count import SlidingCount

_CLOSED = -inf
UNKNOWN = -1
"""The generation of what says nothing about a backend."""


class BreakerState(Enum):
    """CLOSED: work is sent. OPEN: none is. HALF_OPEN: one request finds out."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Breaker:
    """The breaker of one backend. Times are in seconds on one monotonic clock.

    `open_until` is all that a decision needs: nothing is sent before it. It is -inf while
    closed, the end of the rest while open, and while a probe is out the time until which its
    outcome is awaited (`longest_rest`): a probe that nobody reports cannot block a backend forever.
    """

    __slots__ = (
        "_closed_at",
        "_consecutive",
        "_ended",
        "_failures",
        "_generation",
        "_next_rest",
        "_probing",
        "_quiet_since",
        "_rules",
        "_succeeded_at",
        "open_until",
    )

    def __init__(self, rules: BreakerRules) -> None:
        self._rules = rules
        self._ended = SlidingCount(rules.window)
        self._failures = SlidingCount(rules.window)
        self._generation = 0
        self._succeeded_at = -inf
        self.reset()

    def reset(self) -> None:
        """Closes it and forgets everything, what is under way included."""
        self._generation += 1
        self._consecutive = 0
        self._ended.clear()
        self._failures.clear()
        self._next_rest = min(self._rules.rest, self._rules.longest_rest)
        self._probing = False
        self._closed_at = inf
        self._quiet_since = inf
        self.open_until = _CLOSED

    def set_rules(self, rules: BreakerRules) -> None:
        """Other rules from now on; a rest that has begun keeps its length."""
        if rules.window != self._rules.window:
            self._ended = SlidingCount(rules.window)
            self._failures = SlidingCount(rules.window)
        self._next_rest = min(max(self._next_rest, rules.rest), rules.longest_rest)
        self._rules = rules

    def state(self, now: float) -> BreakerState:
        """For people; decisions compare `open_until`."""
        if self.open_until == _CLOSED:
            return BreakerState.CLOSED
        if self._probing or now >= self.open_until:
            return BreakerState.HALF_OPEN
        return BreakerState.OPEN

    def may_send(self, now: float) -> bool:
        """Whether a request may go there."""
        return now >= self.open_until

    def sent(self, now: float) -> int:
        """A request goes there. Returns its generation, which its outcome is reported with.

        After a rest it is the probe. The outcome of one sent in spite of a rest is disregarded.
        """
        if self.open_until != _CLOSED:
            if now < self.open_until:
                return UNKNOWN
            self._probing = True
            self.open_until = now + self._rules.longest_rest
            self._quiet_since = now
        return self._generation

    def proved(self, generation: int, now: float) -> None:
        """A first token came. That is enough of a probe: its answer may take minutes to end."""
        if self._probing and generation == self._generation:
            self._close(now)

    def succeeded(self, generation: int, now: float) -> None:
        """A request ended well."""
        if generation != self._generation:
            return
        self._consecutive = 0
        self._succeeded_at = now
        self._ended.add(now)
        if self._probing:
            self._close(now)

    def failed(self, generation: int, now: float) -> None:
        """A request failed, and the backend is to blame."""
        if generation != self._generation:
            return
        self._consecutive += 1
        self._ended.add(now)
        self._failures.add(now)
        if (
            self._probing
            or self._consecutive >= self._rules.consecutive
            or self._too_many_failures(now)
        ):
            self._open(now)

    def abandoned(self, generation: int, now: float) -> None:
        """A request ended without a verdict, as when its caller left: another may be the probe."""
        if self._probing and generation == self._generation:
            self._probing = False
            self.open_until = now

    def heartbeat(self, now: float) -> None:
        """A token came, of whichever request."""
        self._quiet_since = now

    def check_silence(self, now: float, running: int, excused: float = 0.0) -> bool:
        """Opens when `running` requests brought no token for too long; true when it did so now.

        To be called about once a second. Silence counts from the first look that finds work, so
        that it is never overestimated. `excused` is how many seconds without a token are expected,
        as of one long prompt alone.
        """
        resting = self.open_until != _CLOSED and not self._probing
        if not running or resting:
            self._quiet_since = inf
            return False
        if self._quiet_since == inf:
            self._quiet_since = now
        if now - self._quiet_since < max(self._rules.silence, excused):
            return False
        self._open(now)
        return True

    def _too_many_failures(self, now: float) -> bool:
        ended = self._ended.total(now)
        if ended < self._rules.minimum_requests:
            return False
        return self._failures.total(now) >= self._rules.failure_share * ended

    def _close(self, now: float) -> None:
        self._probing = False
        self._consecutive = 0
        self._closed_at = now
        self.open_until = _CLOSED

    def _open(self, now: float) -> None:
        rules = self._rules
        # Health is a success at least a window, and at least the last rest, after the closing.
        proven = max(rules.window, self._next_rest / 2)
        if self._succeeded_at - self._closed_at >= proven:
            self._next_rest = rules.rest
        rest = min(self._next_rest, rules.longest_rest)
        self._next_rest = min(2.0 * rest, rules.longest_rest)
        self._generation += 1
        self._consecutive = 0
        self._ended.clear()
        self._failures.clear()
        self._probing = False
        self._closed_at = inf
        self._quiet_since = inf
        self.open_until = now + rest
