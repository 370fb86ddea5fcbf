"""The valve between own hardware and the cloud, alone and in a small simulation."""

from heapq import heappop, heappush
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.core.overflow import Valve
from services.router.core.policy import OverflowRules

RULES = OverflowRules()
NOW = 1000.0


def open_valve() -> Valve:
    valve = Valve(RULES)
    assert valve.update(False, False, NOW)
    return valve


def test_it_stays_closed_while_a_local_backend_is_feasible():
    valve = Valve(RULES)
    assert not valve.update(True, True, NOW)
    assert not valve.update(True, False, NOW + 1)


def test_it_opens_at_once_when_nothing_local_is_feasible():
    valve = open_valve()
    assert (valve.open, valve.opened) == (True, 1)


def test_open_it_takes_back_what_is_comfortable_and_spills_what_is_only_feasible():
    valve = open_valve()
    assert valve.update(True, False, NOW + 1), "feasible only: it stays open"
    assert valve.update(True, True, NOW + 1.1), "this one is comfortable, and goes to a local one"


def test_it_closes_after_comfort_has_lasted():
    valve = open_valve()
    assert valve.update(True, True, NOW + 1.0)
    assert valve.update(True, True, NOW + 1.49)
    assert not valve.update(True, True, NOW + 1.5)


def test_one_discomfort_begins_the_time_anew():
    valve = open_valve()
    valve.update(True, True, NOW + 1.0)
    valve.update(True, False, NOW + 1.4)
    assert valve.update(True, True, NOW + 1.6)
    assert valve.update(True, True, NOW + 2.0)
    assert not valve.update(True, True, NOW + 2.1)


def test_time_without_requests_is_no_comfort():
    valve = open_valve()
    assert valve.update(True, True, NOW + 100)
    valve.update(False, False, NOW + 100.1)
    assert valve.opened == 1


def test_where_overflow_is_off_it_never_opens():
    valve = Valve(OverflowRules(enabled=False))
    assert not valve.update(False, False, NOW)


@given(st.lists(st.tuples(st.floats(0, 0.4), st.sampled_from([0, 1, 2])), max_size=200))
def test_it_opens_only_without_a_feasible_backend_and_closes_only_after_lasting_comfort(steps):
    valve, now, comfortable_since, changes = Valve(RULES), NOW, None, []
    for gap, comfort in steps:
        now += gap
        was = valve.open
        is_open = valve.update(comfort > 0, comfort > 1, now)
        if comfort < 2:
            comfortable_since = None
        elif comfortable_since is None:
            comfortable_since = now
        if comfort == 0:
            assert is_open
        if is_open and not was:
            assert comfort == 0
        if was and not is_open:
            assert now - comfortable_since >= RULES.hold
        if is_open != was:
            changes.append((now, is_open))
    closings = [at for at, is_open in changes if not is_open]
    openings = [at for at, is_open in changes if is_open]
    for closed, opened in zip(closings, openings, strict=False):
        assert closed - opened >= RULES.hold, "so it closes at most 1/hold times a second"


SECONDS = 120.0


class Outcome:
    """What the requests of a simulation came to."""

    def __init__(self) -> None:
        self.requests = self.spilled = self.late = self.changes = 0
        self.busy = 0.0
        """The share of the places' time that was worked."""

    @property
    def share(self) -> float:
        return self.spilled / self.requests


def simulate(load: float, rules: OverflowRules, *, places: int = 256, seed: int = 1) -> Outcome:
    """Engines of so many places and a queue; a request holds a place for 2 s on average.

    Its wait is predicted from the queue and the mean pace, as a router does, and the objective is
    1 s to the first token. Arrivals and lengths have random streams of their own.
    """
    mean, objective = 2.0, 1.0
    arrivals, lengths = Random(seed), Random(seed + 1000)
    valve, outcome = Valve(rules), Outcome()
    free_at = [0.0] * places  # when each place is done with all that is queued for it
    ends: list[float] = []
    starts: list[float] = []
    now = worked = 0.0
    while now < SECONDS:
        now += arrivals.expovariate(load * places / mean)
        length = lengths.expovariate(1 / mean)
        outcome.requests += 1
        while ends and ends[0] <= now:
            heappop(ends)
        while starts and starts[0] <= now:
            heappop(starts)
        queued = len(starts)
        excess = queued + 1 if len(ends) - queued >= places else 0
        predicted = 0.1 + excess * mean / places
        feasible = rules.ttft_margin * predicted <= objective
        comfortable = rules.leave * rules.ttft_margin * predicted <= objective
        was = valve.open
        is_open = valve.update(feasible, comfortable, now)
        outcome.changes += is_open != was
        if is_open and not comfortable:
            outcome.spilled += 1
            continue
        assert feasible, "a closed valve promises that a local backend can take it"
        start = max(now, heappop(free_at))
        heappush(free_at, start + length)
        heappush(ends, start + length)
        heappush(starts, start)
        worked += max(min(start + length, SECONDS) - start, 0.0)
        outcome.late += start - now + 0.1 > objective
    outcome.busy = worked / (places * SECONDS)
    return outcome


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_at_a_tenth_too_much_load_it_spills_the_excess_and_does_not_flap(seed):
    outcome = simulate(1.1, RULES, seed=seed)
    assert outcome.share == pytest.approx(1 - 1 / 1.1, abs=0.03)
    assert outcome.busy > 0.97, "own hardware stays full"
    assert outcome.changes / SECONDS < 1.0, "a quarter of the bound of 2/hold"
    assert outcome.late / outcome.requests < 0.01


def test_without_hysteresis_it_would_flap():
    naive = OverflowRules(leave=1.0, hold=0.0)
    assert simulate(1.1, naive).changes > 10 * simulate(1.1, RULES).changes


def test_hysteresis_sends_hardly_anything_away_that_would_have_fitted():
    naive = OverflowRules(leave=1.0, hold=0.0)
    assert simulate(1.1, RULES).share <= simulate(1.1, naive).share + 0.01


def test_on_few_places_randomness_idles_some_and_the_valve_is_still_calm():
    outcome = simulate(1.1, RULES, places=16)
    assert outcome.changes / SECONDS < 1.0
    assert outcome.share == pytest.approx(1 - 1 / 1.1, abs=0.06)


def test_below_capacity_nothing_is_spilled():
    assert simulate(0.9, RULES).spilled == 0


def test_far_above_capacity_own_hardware_stays_full():
    outcome = simulate(2.0, RULES)
    assert outcome.busy > 0.97
    assert outcome.share == pytest.approx(0.5, abs=0.02)
