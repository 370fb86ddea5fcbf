"""Whether two kinds of response times differ: Welch's t, and its crops."""

from __future__ import annotations

import math
import random

import pytest

from bench.auth.leakage import CROPS, FEWEST, crop_shares, leakage, welch

LIMIT = 4.5


def response_times(count: int, seed: int, *, shift: float = 0.0) -> list[float]:
    """Around 10 ms with 0.1 ms of noise, and one in fifty far out in a long tail."""
    chance = random.Random(seed)
    times = []
    for _ in range(count):
        time = chance.gauss(10.0, 0.1) + shift
        times.append(time + chance.expovariate(1 / 200.0) if chance.random() < 0.02 else time)
    return times


def test_t_is_the_difference_of_the_means_by_its_standard_error():
    # Means 2.5 and 4, variances 5/3 and 4: 1.5 / sqrt(5/12 + 4/3).
    assert welch([1, 2, 3, 4], [2, 4, 6]) == pytest.approx(1.5 / math.sqrt(1.75))
    assert welch([2, 4, 6], [1, 2, 3, 4]) == pytest.approx(-1.5 / math.sqrt(1.75))


def test_constants_are_the_same_or_infinitely_different():
    assert welch([1.0, 1.0], [1.0, 1.0]) == 0.0
    assert welch([1.0, 1.0], [2.0, 2.0]) == math.inf
    assert math.isnan(welch([1.0], [2.0, 3.0]))


def test_the_crops_are_those_of_dudect():
    shares = crop_shares()
    assert len(shares) == CROPS
    assert shares[0] == pytest.approx(0.0670, abs=1e-4)
    assert shares[-1] == pytest.approx(1 - 2**-10)
    assert shares == sorted(shares)


def test_times_of_one_distribution_are_not_told_apart():
    found = leakage(response_times(5000, 1), response_times(5000, 2), LIMIT)
    assert found.samples == (5000, 5000)
    assert abs(found.worst_t) < LIMIT


def test_a_small_difference_that_a_tail_hides_is_found_by_a_crop():
    found = leakage(response_times(5000, 1), response_times(5000, 2, shift=0.02), LIMIT)
    assert abs(found.t) < LIMIT
    assert found.worst_t > LIMIT
    assert found.kept < 1.0
    assert found.median_difference == pytest.approx(0.02, abs=0.01)


def test_what_is_cropped_is_counted_exactly():
    first, second = response_times(500, 1), response_times(500, 2, shift=0.05)
    found = leakage(first, second, LIMIT)
    assert found.t == pytest.approx(welch(first, second))
    threshold = sorted(first + second)[math.ceil(found.kept * 1000) - 1]
    kept = [[time for time in times if time <= threshold] for times in (first, second)]
    assert found.worst_t == pytest.approx(welch(*kept))


def test_the_detectable_difference_is_the_one_that_reaches_the_limit():
    first, second = response_times(500, 1), response_times(500, 2)
    found = leakage(first, second, LIMIT)
    planted = [time + found.detectable - found.difference for time in second]
    assert welch(first, planted) == pytest.approx(LIMIT)


def test_too_few_samples_say_nothing():
    with pytest.raises(ValueError, match="needed"):
        leakage([1.0] * FEWEST, [1.0] * (FEWEST - 1), LIMIT)
