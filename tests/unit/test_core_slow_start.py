"""How a backend that is new comes to its share."""

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.core.decide import choose
from services.router.core.slow_start import FLOOR, warmth
from services.router.core.tracker import Tracker
from services.router.core.values import Pool, Request, Terms, Tier


@pytest.mark.parametrize(
    ("since", "warm"), [(-1.0, 0.1), (0.0, 0.1), (5.0, 0.55), (10.0, 1.0), (1e9, 1.0)]
)
def test_it_ramps_from_the_floor_to_one(since, warm):
    assert warmth(since, ramp=10.0) == pytest.approx(warm)


@pytest.mark.parametrize("since", [0.0, 1.0])
def test_without_a_ramp_a_backend_is_warm_at_once(since):
    assert warmth(since, ramp=0.0) == 1.0


@given(st.floats(-10, 1000), st.floats(-10, 1000), st.floats(0, 100), st.floats(0.01, 1.0))
def test_it_never_cools(one, other, ramp, floor):
    early, late = sorted((one, other))
    assert floor <= warmth(early, ramp, floor) <= warmth(late, ramp, floor) <= 1.0


@pytest.mark.parametrize("warm", [FLOOR, 0.25, 0.5])
def test_dividing_the_load_by_warmth_gives_that_share_of_an_equals_work(warm):
    """Requests go to the lower (load + own) / warmth and stay: loads settle at the ratio."""
    warm_load = cold_load = 0
    for _ in range(2000):
        if (cold_load + 1) / warm <= warm_load + 1:
            cold_load += 1
        else:
            warm_load += 1
    assert cold_load / warm_load == pytest.approx(warm, rel=0.02)


def test_an_empty_cold_backend_is_not_preferred_to_a_little_used_warm_one():
    assert (0 + 1) / warmth(0.0, 10.0) > (5 + 1) / warmth(60.0, 10.0)


@pytest.mark.parametrize(("since", "share"), [(0.0, 0.1), (5.0, 0.55), (10.0, 1.0)])
def test_decisions_give_a_cold_backend_that_share_of_what_its_equals_get(since, share):
    """Requests that stay, on backends that do not report meanwhile."""
    terms, random = Terms.plain("m")._replace(slow_start=10.0), Random(1)
    trackers = {name: Tracker(name, Tier.LOCAL, frozenset("m")) for name in ("warm", "too", "cold")}
    for name, tracker in trackers.items():
        tracker.connected(100.0 - since if name == "cold" else 0.0)
    got: Counter[str] = Counter()
    for start in range(600):
        pool = Pool(tuple(tracker.view() for tracker in trackers.values()))
        chosen = choose(Request("m", 20), pool, terms, 100.0, random).backend_id
        trackers[chosen].started(start, 20)
        got[chosen] += 1
    assert got["cold"] / got["warm"] == pytest.approx(share, rel=0.05)
    assert got["warm"] == pytest.approx(got["too"], abs=1)
