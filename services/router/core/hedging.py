"""When a second backend is asked because the first one is late, and whether that may be done.

It bounds how many are asked and what they cost. Which backend, and who wins, is the shell's.

Source: hedged requests of Dean and Barroso, "The Tail at Scale" (CACM 2013), held to a share of
all requests over a sliding window.
"""

from __future__ import annotations

from services.router.core.policy import HedgeRules
from services.router.core.sliding_count import SlidingCount

WINDOW_S = 60.0


class Hedging:
    """The hedges of one process; `now` is in seconds on one monotonic clock."""

    __slots__ = ("_hedges", "_requests", "_rules")

    def __init__(self, rules: HedgeRules) -> None:
        self._rules = rules
        self._requests = SlidingCount(WINDOW_S)
        self._hedges = SlidingCount(WINDOW_S)

    def set_rules(self, rules: HedgeRules) -> None:
        """Other rules from now on; the counts stay."""
        self._rules = rules

    def count(self, now: float) -> None:
        """A request is sent for the first time: hedges are a share of these."""
        self._requests.add(now)

    def hedge_delay(self, predicted_ttft: float) -> float | None:
        """Seconds after sending at which a first token is late; None: do not look."""
        rules = self._rules
        if not rules.enabled:
            return None
        return max(rules.after * predicted_ttft, rules.soonest)

    def withdraw(self, now: float, *, answering: bool, cost: int = 0, affordable: int = 0) -> bool:
        """Takes the right to hedge one request now; false when it may not be hedged.

        `answering`: its first token has come, and nothing is gained any more. `cost` is what the
        hedge may cost, in millionths of a US dollar, 0 on own hardware; `affordable` is what may
        be spent on it, so that a hedge in the cloud needs somebody who has looked at the budget.
        """
        if answering or not self._rules.enabled or cost > affordable:
            return False
        if self._hedges.total(now) + 1 > self._rules.share * self._requests.total(now) + 1e-9:
            return False
        self._hedges.add(now)
        return True
