"""Who waits, who leaves, who is served late and who is refused; and what each is told."""

from dataclasses import replace
from math import inf
from random import Random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from services.router.core.decide import PATIENCE_S, choose, decide
from services.router.core.policy import Algorithm, Objective, OverflowRules
from services.router.core.prediction import outlook
from services.router.core.values import (
    Backend,
    Dispatch,
    Health,
    Load,
    Overflow,
    Pool,
    Prices,
    Refusal,
    Refuse,
    Request,
    Residency,
    Resume,
    Terms,
    Tier,
    Wait,
)
from tests.support.decision_strategies import NOW, pools, requests, snapshot, terms

TERMS = Terms.plain("m")
MANY = settings(max_examples=200)


def local(name: str = "a", **changes) -> Backend:
    values = {"health": Health.READY, "models": frozenset("m"), **changes}
    return Backend(name, Tier.LOCAL, **values)


def cloud(name: str = "cloud", **changes) -> Backend:
    return Backend(name, Tier.CLOUD, Health.READY, frozenset("m"), **changes)


def verdict(request: Request, *backends: Backend, terms: Terms = TERMS):
    return choose(request, Pool(backends), terms, NOW, Random(1))


FULL = local(load=Load(running=4, max_running=4, step_time=0.001))


# Properties


def busy(found: list[Backend]) -> list[Backend]:
    """The same, with every local slot taken."""
    return [
        replace(b, load=replace(b.load, running=4, max_running=4), in_flight=4)
        if b.tier is Tier.LOCAL
        else b
        for b in found
    ]


def dear(found: list[Backend]) -> list[Backend]:
    """The same, with a price on everything in the cloud."""
    priced = {"m": Prices(1_000_000, 1_000_000)}
    return [replace(b, prices=priced) if b.tier is Tier.CLOUD else b for b in found]


@MANY
@given(
    requests.map(lambda asked: asked._replace(residency=Residency.LOCAL_FIRST)),
    pools(least=1).map(busy),
    terms,
)
def test_who_waits_for_a_local_slot_is_expected_to_be_in_time(request, found, terms):
    said = choose(request, snapshot(found), terms, NOW, Random(1))
    if not isinstance(said, Wait) or not said.why.startswith("a local slot"):
        return
    limit = request.ttft_slo
    if limit is None:
        limit = terms.objective.ttft - request.waited
    assert terms.overflow.ttft_margin * said.expected <= limit
    waits = [outlook(b).wait or outlook(b).turnover for b in found if b.tier is Tier.LOCAL]
    assert said.expected in waits


@MANY
@given(requests, pools(least=1), terms)
def test_only_its_own_limit_keeps_a_request_from_a_place_that_is_free(request, found, terms):
    decision = decide(request, snapshot(found), terms, NOW, Random(1))
    said = decision.verdict
    if isinstance(said, Dispatch):
        return
    free = [c for c in decision.candidates if c.objection.startswith("too slow")]
    if isinstance(said, Wait) and said.why.startswith("a local slot"):
        return
    assert not free or request.ttft_slo is not None
    assert not any(c.feasible for c in decision.candidates)


@MANY
@given(requests, pools(least=1), terms)
def test_nobody_is_refused_who_could_wait_and_nobody_waits_in_vain(request, found, terms):
    decision = decide(request, snapshot(found), terms, NOW, Random(1))
    passing = [c for c in decision.candidates if c.objection.startswith(("busy", "too slow"))]
    if isinstance(decision.verdict, Refuse):
        assert not passing
    elif isinstance(decision.verdict, Wait):
        assert passing
        assert 0 <= decision.verdict.expected < inf


@MANY
@given(
    requests.map(lambda asked: asked._replace(budget=1, max_output=9)),
    pools(least=1).map(busy).map(dear),
    terms,
)
def test_money_is_asked_for_only_where_more_of_it_would_help(request, found, terms):
    said = choose(request, snapshot(found), terms, NOW, Random(1))
    if isinstance(said, Dispatch) or not said.money:
        return
    assert said.money > 1
    richer = request._replace(budget=said.money)
    after = choose(richer, snapshot(found), terms, NOW, Random(1))
    assert not isinstance(after, Refuse)
    assert after.money == 0 if isinstance(after, Wait) else after.cost <= said.money


@MANY
@given(requests, pools(least=1), terms)
def test_a_reason_to_overflow_is_one_that_can_be_seen(request, found, terms):
    decision = decide(request, snapshot(found), terms, NOW, Random(1))
    said = decision.verdict
    assume(isinstance(said, Dispatch))
    preferred = request.residency.tiers[0]
    there = [c for c in decision.candidates if c.tier is preferred]
    if said.tier is preferred or request.backend_id:
        assert said.overflow is None
    elif not there:
        assert said.overflow is Overflow.ABSENT
    elif any(c.objection.startswith(("busy", "too slow")) for c in there):
        assert said.overflow is Overflow.SATURATED
    else:
        failed = any(c.backend_id in request.tried for c in there)
        assert said.overflow is (Overflow.FAILED if failed else Overflow.UNHEALTHY)


@MANY
@given(requests, pools(least=1), terms, st.integers(0, 9))
def test_an_open_valve_is_stricter_with_local_backends_and_with_nobody_else(
    request, found, terms, seed
):
    assume(terms.algorithm in (Algorithm.PREDICTED, Algorithm.LEAST_OUTSTANDING))
    pool = snapshot(found)
    closed = choose(request._replace(overflowing=False), pool, terms, NOW, Random(seed))
    opened = choose(request._replace(overflowing=True), pool, terms, NOW, Random(seed))
    if request.residency is not Residency.LOCAL_FIRST:
        assert opened == closed
    elif isinstance(closed, Dispatch) and closed.tier is Tier.LOCAL and not closed.late:
        # Spilled, or comfortable elsewhere, or expected to be; nobody is let down for it.
        assert not isinstance(opened, Refuse)
        assert not (isinstance(opened, Dispatch) and opened.late)
    elif isinstance(closed, Wait) and isinstance(opened, Dispatch):
        assert opened.tier is Tier.CLOUD
    elif isinstance(closed, Dispatch):
        assert isinstance(opened, Dispatch)
        assert opened.tier is closed.tier
        assert opened.late == closed.late
    else:
        assert type(opened) is type(closed)


# Cases


def test_a_request_leaves_when_the_cloud_will_soon_be_too_late_and_not_before():
    slow = cloud(ttft_p95=1.0)
    last = 10.0 - 1.0 - PATIENCE_S
    assert isinstance(verdict(Request("m", 10, waited=last - 0.01), FULL, slow), Wait)
    assert verdict(Request("m", 10, waited=last + 0.01), FULL, slow).backend_id == "cloud"


def test_one_that_waits_by_choice_is_told_from_one_that_cannot_leave():
    asked, slow = Request("m", 10), cloud(ttft_p95=20.0)
    assert verdict(asked, FULL, cloud()).may_leave
    assert not verdict(asked, FULL).may_leave
    assert not verdict(asked, FULL, slow).may_leave
    assert not verdict(asked._replace(cloud_allowed=False), FULL, cloud()).may_leave
    assert not verdict(asked._replace(residency=Residency.LOCAL_ONLY), FULL, cloud()).may_leave


def test_who_has_no_limit_of_its_own_is_served_late_in_the_cloud_when_nothing_local_is_free():
    late = verdict(Request("m", 10, waited=60.0), FULL, cloud(ttft_p95=5.0))
    assert (late.backend_id, late.late, late.overflow) == ("cloud", True, Overflow.SATURATED)


def test_who_has_a_limit_of_its_own_waits_for_it_to_pass():
    asked = Request("m", 10, ttft_slo=0.1)
    assert isinstance(verdict(asked, FULL, cloud(ttft_p95=5.0)), Wait)


def test_the_reason_of_a_late_overflow_is_the_true_one():
    asked, slow = Request("m", 10), cloud(ttft_p95=20.0)
    assert verdict(asked, slow).overflow is Overflow.ABSENT
    assert verdict(asked, local(drained=True), slow).overflow is Overflow.UNHEALTHY
    assert verdict(asked._replace(tried=frozenset("a")), local(), slow).overflow is Overflow.FAILED


def test_a_request_that_names_a_backend_overflows_from_nowhere():
    asked = Request("m", 10, backend_id="cloud")
    assert verdict(asked, local(), cloud()).overflow is None


def test_an_open_valve_does_not_hold_the_cloud_to_more_than_its_objective():
    asked = Request("m", 10, ttft_slo=1.0)
    both = local(round_trip=0.73), cloud(ttft_p95=0.75)
    terms = TERMS._replace(overflow=OverflowRules(leave=1.1))
    assert verdict(asked, *both, terms=terms).backend_id == "a"
    assert verdict(asked._replace(overflowing=True), *both, terms=terms).backend_id == "cloud"


@pytest.mark.parametrize(
    "asked",
    [
        Request("m", 10, Residency.LOCAL_ONLY),
        Request("m", 10, Residency.CLOUD_FIRST, cloud_allowed=False),
        Request("m", 10, cloud_allowed=False),
        Request("m", 10, budget=0),
    ],
)
@pytest.mark.parametrize("limit", [1.0, None])
def test_an_open_valve_holds_nobody_back_who_cannot_leave(asked, limit):
    queued = local(round_trip=0.73)
    hasty = TERMS._replace(objective=Objective(ttft=1.0), overflow=OverflowRules(leave=1.1))
    asked = asked._replace(ttft_slo=limit)
    closed = verdict(asked, queued, cloud(), terms=hasty)
    assert closed.backend_id == "a"
    assert 1.3 * closed.predicted_ttft <= 1.0 < 1.43 * closed.predicted_ttft, "within the margin"
    opened = verdict(asked._replace(overflowing=True), queued, cloud(), terms=hasty)
    assert opened == closed
    assert not opened.late


def test_an_answer_that_only_money_keeps_from_going_on_asks_for_it():
    able = {"m": frozenset({Resume.AFTER_TEXT})}
    (priced,) = dear([cloud(resumes=able)])
    asked = Request("m", 10, resume=Resume.AFTER_TEXT, max_output=90, budget=0)
    refused = verdict(asked, priced)
    assert (refused.refusal, refused.money) == (Refusal.NO_BUDGET, 100)
    assert verdict(asked._replace(budget=100), priced).backend_id == "cloud"
