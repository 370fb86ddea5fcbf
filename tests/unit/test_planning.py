"""What a workload costs a year: Erlang's formulas, sizing, break-evens, and what is refused."""

from __future__ import annotations

import heapq
import math
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.planning import (
    CloudPrices,
    PlanningError,
    Replica,
    StepPace,
    Workload,
    plan,
)
from anabranch.planning.traffic import daily_curve, erlang_b, erlang_c

WORK = Workload(requests_per_day=2_000_000, prompt_tokens=1200, output_tokens=300)
REPLICA = Replica(
    output_tokens_per_second=13_000,
    prompt_tokens_per_second=math.inf,
    slots=256,
    dollars_per_hour=2.5,
)
PRICES = CloudPrices(prompt=0.4, output=1.6)


# From the tables of teletraffic textbooks, four digits.
@pytest.mark.parametrize(
    ("load", "servers", "share"),
    [(1, 1, 0.5), (10, 10, 0.2146), (4.46, 10, 0.0100), (84.06, 100, 0.0100), (0, 3, 0.0)],
)
def test_the_share_that_overflows_is_that_of_the_tables(load, servers, share):
    assert erlang_b(load, servers) == pytest.approx(share, abs=1e-4)


@pytest.mark.parametrize(
    ("load", "servers", "share"), [(8, 10, 0.4092), (2, 3, 0.4444), (10, 10, 1.0), (12, 10, 1.0)]
)
def test_the_share_that_waits_is_that_of_the_tables(load, servers, share):
    assert erlang_c(load, servers) == pytest.approx(share, abs=1e-4)


@pytest.mark.parametrize("draw", [random.Random.expovariate, None], ids=["exponential", "fixed"])
def test_simulated_arrivals_overflow_as_the_formula_says_whatever_their_lengths(draw):
    chance, load, servers = random.Random(7), 20.0, 24
    busy: list[float] = []
    now, lost, arrivals = 0.0, 0, 200_000
    for _ in range(arrivals):
        now += chance.expovariate(load)
        while busy and busy[0] <= now:
            heapq.heappop(busy)
        if len(busy) == servers:
            lost += 1
        else:
            heapq.heappush(busy, now + (draw(chance, 1.0) if draw else 1.0))
    assert lost / arrivals == pytest.approx(erlang_b(load, servers), rel=0.05)


@given(peak=st.floats(1, 20))
def test_a_day_has_mean_one_and_the_peak_that_was_asked_for(peak):
    curve = daily_curve(peak)
    assert sum(curve) / 24 == pytest.approx(1)
    assert max(curve) == pytest.approx(peak, rel=1e-6)
    assert min(curve) >= 0


def test_local_only_lets_no_more_wait_in_the_busiest_hour_than_was_said():
    found = plan(WORK, REPLICA, PRICES, waiting=0.01)
    slots = found.local_only.replicas * REPLICA.slots
    assert erlang_c(found.peak_requests, slots) <= 0.01
    assert erlang_c(found.peak_requests, slots - REPLICA.slots) > 0.01


def test_the_cloud_alone_costs_what_its_requests_cost():
    found = plan(WORK, REPLICA, PRICES)
    request = (1200 * 0.4 + 300 * 1.6) / 1e6
    assert found.cloud_only.dollars == pytest.approx(2_000_000 * 365 * request)
    assert found.cloud_only.cloud_share == 1
    assert not found.cloud_only.objection


@settings(max_examples=30)
@given(
    requests=st.floats(100, 3e6),
    hourly=st.floats(0.1, 50),
    price=st.floats(0.01, 60),
    peak=st.floats(1, 8),
)
def test_hybrid_costs_no_more_than_any_number_of_replicas(requests, hourly, price, peak):
    work = replace(WORK, requests_per_day=requests, peak=peak)
    found = plan(work, replace(REPLICA, dollars_per_hour=hourly), CloudPrices(price, 4 * price))
    assert found.hybrid.dollars <= found.cloud_only.dollars * (1 + 1e-9)
    assert all(found.hybrid.dollars <= option.dollars for option in found.options)
    # More replicas send less away.
    shares = [option.cloud_share for option in found.options]
    assert shares == sorted(shares, reverse=True)
    # What local only would have wait may be more than nothing: hybrid pays for that.
    assert found.hybrid.dollars <= found.local_only.dollars + 0.011 * found.cloud_only.dollars


def test_what_is_private_stays_and_needs_replicas_of_its_own():
    work = replace(WORK, requests_per_day=50_000, private=0.3)
    found = plan(work, REPLICA, CloudPrices(0.0, 0.0))
    assert found.cloud_only.objection == "private requests may not leave"
    assert found.options[0].cloud_share == pytest.approx(0.7)
    assert found.options[0].objection == "private requests alone need 1"
    assert found.hybrid.replicas == 1


def test_break_evens_are_where_the_costs_meet():
    found = plan(WORK, REPLICA, PRICES)
    assert found.first_replica_pays_from is not None
    above = replace(WORK, requests_per_day=found.first_replica_pays_from * 1.02)
    below = replace(WORK, requests_per_day=found.first_replica_pays_from * 0.98)
    assert plan(above, REPLICA, PRICES).hybrid.replicas == 1
    assert plan(below, REPLICA, PRICES).hybrid.replicas == 0
    assert found.local_only_pays_from is not None
    at = replace(WORK, requests_per_day=found.local_only_pays_from)
    there = plan(at, REPLICA, PRICES)
    assert there.local_only.dollars <= there.cloud_only.dollars * (1 + 1e-9)


def test_where_the_cloud_is_cheap_replicas_never_pay():
    found = plan(WORK, REPLICA, CloudPrices(0.0001, 0.0001))
    assert found.hybrid.replicas == 0
    assert found.first_replica_pays_from is None
    assert found.local_only_pays_from is None


def test_spare_replicas_are_paid_by_local_only_alone():
    plain, spare = plan(WORK, REPLICA, PRICES), plan(WORK, REPLICA, PRICES, spare=2)
    assert spare.local_only.replicas == plain.local_only.replicas + 2
    assert spare.hybrid == plain.hybrid


def test_a_pace_gives_the_throughput_of_its_full_step():
    pace = StepPace(base=7000, prefill=30, decode=20, context=0.02)
    replica = pace.replica(WORK, slots=100, kv_tokens=0, dollars_per_hour=1)
    step = (7000 + 100 * (20 + 0.02 * (1200 + 150))) / 1e6
    assert replica.output_tokens_per_second == pytest.approx(100 / step)
    assert replica.prompt_tokens_per_second == pytest.approx(1e6 / 30)
    # A request reads its prompt, then takes a step a token; the others read theirs meanwhile.
    assert replica.seconds(WORK) == pytest.approx(300 * step + 100 * 1200 * 30e-6)


def test_slots_are_no_more_than_the_kv_cache_holds():
    pace = StepPace(base=7000, prefill=30, decode=20, context=0.02)
    assert pace.replica(WORK, slots=256, kv_tokens=15_000, dollars_per_hour=1).slots == 10
    with pytest.raises(PlanningError, match="does not fit"):
        pace.replica(WORK, slots=256, kv_tokens=1000, dollars_per_hour=1)
    with pytest.raises(PlanningError, match="not learnt"):
        StepPace(0, 0, 0, 0).replica(WORK, slots=1, kv_tokens=0, dollars_per_hour=1)


def test_slots_are_no_more_than_the_time_per_token_allows():
    pace = StepPace(base=7000, prefill=30, decode=20, context=0.02)
    replica = pace.replica(WORK, slots=256, kv_tokens=0, dollars_per_hour=1, token_time=0.01)
    assert replica.slots == int(3000 / (20 + 0.02 * 1350))
    assert replica.slots / replica.output_tokens_per_second <= 0.01
    with pytest.raises(PlanningError, match="one request alone takes 7 ms a token"):
        pace.replica(WORK, slots=256, kv_tokens=0, dollars_per_hour=1, token_time=0.007)


def test_cached_prompts_are_read_faster_and_charged_less():
    work = replace(WORK, cached=0.5)
    reading = replace(REPLICA, prompt_tokens_per_second=30_000)
    assert reading.seconds(work) < reading.seconds(WORK)
    prices = CloudPrices(0.4, 1.6, cached_prompt=0.1)
    assert prices.request(work) == pytest.approx((600 * 0.4 + 600 * 0.1 + 300 * 1.6) / 1e6)


def test_every_figure_out_of_range_is_named_at_once():
    work = replace(WORK, peak=0.5, private=2)
    with pytest.raises(PlanningError) as refused:
        plan(work, replace(REPLICA, slots=0), PRICES, waiting=0)
    for name in ("peak", "private share", "slots of a replica", "share that may wait"):
        assert name in str(refused.value)


def test_a_workload_beyond_a_thousand_replicas_is_refused_and_not_counted_for_minutes():
    with pytest.raises(PlanningError, match="beyond what this plans for"):
        plan(
            replace(WORK, requests_per_day=9e8),
            replace(REPLICA, output_tokens_per_second=1000),
            PRICES,
        )
