"""Percentiles: a table of them as a distribution to draw from, and those of what was measured.

Pure arithmetic; the randomness is an argument.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from math import exp, floor, log
from random import Random


class LogLinear:
    """The distribution whose inverse CDF is linear in the logarithm between known percentiles.

    `points` are (percentile, value) with both rising and every value above 0. Nothing is drawn
    beyond the first and the last of them.
    """

    def __init__(self, points: Sequence[tuple[float, float]]) -> None:
        self._at = [percentile for percentile, _ in points]
        self._logs = [log(value) for _, value in points]
        if len(points) < 2 or self._at != sorted(set(self._at)) or self._logs != sorted(self._logs):
            raise ValueError("percentiles and their values must rise, and be two at least")

    def value(self, percentile: float) -> float:
        """The value at a percentile between 0 and 100."""
        at, logs = self._at, self._logs
        if percentile <= at[0]:
            return exp(logs[0])
        if percentile >= at[-1]:
            return exp(logs[-1])
        above = bisect_right(at, percentile)
        share = (percentile - at[above - 1]) / (at[above] - at[above - 1])
        return exp(logs[above - 1] + share * (logs[above] - logs[above - 1]))

    def draw(self, random: Random) -> int:
        """A whole number of it, 1 at least."""
        return max(1, round(self.value(100.0 * random.random())))

    def mean(self, steps: int = 20_000) -> float:
        """The mean of what is drawn, by summing over evenly spaced percentiles."""
        return sum(self.value(100.0 * (i + 0.5) / steps) for i in range(steps)) / steps


def percentile(ordered: Sequence[float], at: float) -> float:
    """The value at a percentile of sorted values, linear between neighbours.

    Raises ValueError when there are none.
    """
    if not ordered:
        raise ValueError("there is no percentile of nothing")
    place = (len(ordered) - 1) * at / 100.0
    below = floor(place)
    if below + 1 >= len(ordered):
        return ordered[-1]
    return ordered[below] + (place - below) * (ordered[below + 1] - ordered[below])


def share_below(ordered: Sequence[float], limit: float) -> float:
    """Which share of sorted values is at or below a limit; 0 of none."""
    return bisect_right(ordered, limit) / len(ordered) if ordered else 0.0


def outline(ordered: Sequence[float], points: Sequence[float]) -> list[tuple[float, float]]:
    """The CDF as (value, percentile) at the given percentiles."""
    return [(percentile(ordered, at), at) for at in points] if ordered else []


def band(edges: Sequence[float], value: float) -> int:
    """Which of the bands between rising edges holds a value; an edge belongs to the band below."""
    return bisect_left(edges, value)
