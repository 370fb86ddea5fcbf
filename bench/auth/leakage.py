"""Whether response times of two kinds of requests differ: Welch's t, cropped as dudect does. Pure.

Reparaz, Balasch and Verbauwhede, "Dude, is my code constant time?", DATE 2017 (dudect). Response
times have a long tail, which hides small differences of the many: so the test is repeated over
what lies below each of a hundred percentiles, and the largest |t| counts. That |t| stays below 4.5
is the criterion of test vector leakage assessment (Goodwill et al., 2011).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from bench.dataplane.meter import percentile

CROPS = 100
FEWEST = 100
"""Samples of each kind that a crop must keep to be worth a test."""


@dataclass(frozen=True, slots=True)
class Leakage:
    """What two samples say. Times are in the unit of the samples.

    `t` is of everything, `worst_t` the one of the largest |t| over everything and the crops, and
    `kept` the share of the samples that it is of. `detectable` is the difference of the means
    that would have made |t| reach `limit` there.
    """

    samples: tuple[int, int]
    t: float
    worst_t: float
    kept: float
    difference: float
    median_difference: float
    detectable: float


def welch(first: Sequence[float], second: Sequence[float]) -> float:
    """Welch's t of two samples, for unequal variances; positive when the second is larger.

    NaN for fewer than two values of a kind; infinite for constants that differ.
    """
    return _t(_Moments.of(first), _Moments.of(second))


def crop_shares() -> list[float]:
    """The shares that dudect keeps: close together where the fast responses are."""
    return [1 - 0.5 ** (10 * (number + 1) / CROPS) for number in range(CROPS)]


def leakage(first: Sequence[float], second: Sequence[float], limit: float) -> Leakage:
    """Tests everything, and what is below each percentile of all together.

    Raises ValueError when there are fewer than FEWEST samples of a kind.
    """
    if min(len(first), len(second)) < FEWEST:
        raise ValueError(f"{FEWEST} samples of each kind are needed")
    pooled = sorted((*first, *second))
    # Sums of squares lose no digits when they are taken about a value in the middle.
    middle = percentile(pooled, 50)
    one, other = _Sums(first, middle), _Sums(second, middle)
    whole = worst = _t(one.below(math.inf), other.below(math.inf))
    kept = 1.0
    for share in crop_shares():
        threshold = percentile(pooled, 100 * share)
        a, b = one.below(threshold), other.below(threshold)
        if min(a.count, b.count) < FEWEST:
            continue
        t = _t(a, b)
        if abs(t) > abs(worst):
            worst, kept = t, share
    return Leakage(
        samples=(len(first), len(second)),
        t=whole,
        worst_t=worst,
        kept=kept,
        difference=other.below(math.inf).mean - one.below(math.inf).mean,
        median_difference=percentile(other.ordered, 50) - percentile(one.ordered, 50),
        detectable=limit * _error(one.below(math.inf), other.below(math.inf)),
    )


@dataclass(frozen=True, slots=True)
class _Moments:
    """Count, mean and variance (with n - 1)."""

    count: int
    mean: float
    variance: float

    @classmethod
    def of(cls, values: Sequence[float]) -> _Moments:
        if len(values) < 2:
            return cls(len(values), math.nan, math.nan)
        mean = math.fsum(values) / len(values)
        squares = math.fsum((value - mean) ** 2 for value in values)
        return cls(len(values), mean, squares / (len(values) - 1))


class _Sums:
    """Ordered values with running sums: the moments of every beginning at once."""

    def __init__(self, values: Sequence[float], about: float) -> None:
        self.ordered = sorted(values)
        self._about = about
        shifted = [value - about for value in self.ordered]
        self._sums = list(accumulate(shifted))
        self._squares = list(accumulate(value * value for value in shifted))

    def below(self, threshold: float) -> _Moments:
        """Those of the values up to a threshold."""
        count = bisect_right(self.ordered, threshold)
        if count < 2:
            return _Moments(count, math.nan, math.nan)
        mean = self._sums[count - 1] / count
        variance = (self._squares[count - 1] - count * mean * mean) / (count - 1)
        return _Moments(count, mean + self._about, max(variance, 0.0))


def _error(first: _Moments, second: _Moments) -> float:
    """The standard error of the difference of the means."""
    return math.sqrt(first.variance / first.count + second.variance / second.count)


def _t(first: _Moments, second: _Moments) -> float:
    if min(first.count, second.count) < 2:
        return math.nan
    difference, error = second.mean - first.mean, _error(first, second)
    if error:
        return difference / error
    return math.copysign(math.inf, difference) if difference else 0.0
