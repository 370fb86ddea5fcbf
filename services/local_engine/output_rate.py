"""Tokens a second over the last second, of an engine that puts them out step by step. Pure."""

from __future__ import annotations

from collections import deque

WINDOW_S = 1.0
_FRESH_S = 0.05


class OutputRate:
    """Counts steps' tokens. Times are seconds of one clock, and do not go back.

    Every request asks for the rate, and there are hundreds of steps in a second: while steps
    follow each other it is that of the second before the last one, whose sum is kept.
    """

    def __init__(self) -> None:
        self._steps: deque[tuple[float, int]] = deque()
        self._tokens = 0
        self._last = 0.0

    def add(self, now: float, tokens: int) -> None:
        """A step has put out so many."""
        steps, oldest = self._steps, now - WINDOW_S
        steps.append((now, tokens))
        self._tokens += tokens
        self._last = now
        while steps[0][0] < oldest:
            self._tokens -= steps.popleft()[1]

    def per_second(self, now: float) -> float:
        """Changes nothing, and may be called from another thread."""
        if now - self._last <= _FRESH_S:
            return self._tokens / WINDOW_S
        oldest = now - WINDOW_S
        steps = tuple(self._steps)  # in one go
        return sum([tokens for at, tokens in steps if at >= oldest]) / WINDOW_S

    def clear(self) -> None:
        """Forgets all steps."""
        self._steps.clear()
        self._tokens = 0
