"""Bounds repeats by what first attempts earn. It says nothing about a single request's attempts.

Source: Finagle's RetryBudget. What was earned and what was spent are both forgotten after a
time to live, here 10 s. Hence within any 10 s repeats are at most `ratio` of the first attempts,
and `per_second` for each second besides: a storm of failures adds a fifth to the load, no more.
"""

from __future__ import annotations

from services.router.core.policy import RetryRules
from services.router.core.sliding_count import SlidingCount

TTL_S = 10.0


class RetryBudget:
    """The budget of one process; `now` is in seconds on one monotonic clock."""

    __slots__ = ("_attempts", "_ratio", "_reserve", "_withdrawn")

    def __init__(self, rules: RetryRules) -> None:
        # Both turn at the same moments, so that what was earned is forgotten with its spending.
        self._attempts = SlidingCount(TTL_S)
        self._withdrawn = SlidingCount(TTL_S)
        self.set_rules(rules)

    def set_rules(self, rules: RetryRules) -> None:
        """Other rules from now on; what was earned and spent stays known."""
        self._ratio = rules.ratio
        self._reserve = rules.per_second * TTL_S

    def deposit(self, now: float) -> None:
        """A request is attempted for the first time."""
        self._attempts.add(now)

    def withdraw(self, now: float) -> bool:
        """Takes the right to one repeat; false when there is none."""
        if self.balance(now) < 1.0 - 1e-9:  # five times 0.2 buys one
            return False
        self._withdrawn.add(now)
        return True

    def balance(self, now: float) -> float:
        """Repeats that are affordable now."""
        earned = self._ratio * self._attempts.total(now) + self._reserve
        return earned - self._withdrawn.total(now)
