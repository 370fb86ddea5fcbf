"""Why a backend may not have a request."""

from dataclasses import replace
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.core.feasibility import (
    ASSUMED_OUTPUT,
    cost_of,
    is_about_money,
    standing_objection,
)
from services.router.core.policy import OverflowRules
from services.router.core.values import (
    Backend,
    Health,
    Prices,
    Request,
    Residency,
    Resume,
    Terms,
    Tier,
)

NOW = 1000.0
TERMS = Terms("m-local", "m-cloud")
NO_OVERFLOW = TERMS._replace(overflow=OverflowRules(enabled=False))
LOCAL = Backend("a", Tier.LOCAL, Health.READY, frozenset({"m-local"}))
CLOUD = Backend(
    "b",
    Tier.CLOUD,
    Health.READY,
    frozenset({"m-cloud"}),
    prices={"m-cloud": Prices(input=3_000_000, output=15_000_000)},
)
ASKED = Request("m", 10, max_output=2)
PRICE = 10 * 3 + 2 * 15


def objection(backend: Backend, request: Request = ASKED, terms: Terms = TERMS) -> str:
    return standing_objection(request, backend, terms, NOW)


@pytest.mark.parametrize(
    ("backend", "says"),
    [
        (LOCAL, ""),
        (CLOUD, ""),
        (replace(LOCAL, health=Health.CONNECTING), "not ready: connecting"),
        (replace(LOCAL, health=Health.DRAINING), "not ready: draining"),
        (replace(LOCAL, health=Health.LOST), "not ready: lost"),
        (replace(LOCAL, drained=True), "drained by an operator"),
        (replace(LOCAL, cooling_until=NOW + 0.1), "resting after failures"),
        (replace(LOCAL, cooling_until=NOW), ""),
        (replace(LOCAL, cooling_until=-inf), ""),
    ],
)
def test_a_backend_must_be_well(backend, says):
    assert objection(backend) == says


@pytest.mark.parametrize(
    ("residency", "local", "cloud"),
    [
        (Residency.LOCAL_FIRST, True, True),
        (Residency.CLOUD_FIRST, True, True),
        (Residency.LOCAL_ONLY, True, False),
        (Residency.CLOUD_ONLY, False, True),
    ],
)
def test_a_residency_excludes_tiers(residency, local, cloud):
    asked = ASKED._replace(residency=residency)
    assert (objection(LOCAL, asked) == "") is local
    assert (objection(CLOUD, asked) == "") is cloud


def test_a_request_that_names_a_backend_gets_it_or_nothing():
    asked = ASKED._replace(backend_id="a")
    assert objection(LOCAL, asked) == ""
    assert "names another" in objection(CLOUD, asked)


def test_who_failed_a_request_does_not_get_it_again():
    assert "failed this request" in objection(LOCAL, ASKED._replace(tried=frozenset("a")))


def test_a_tenant_may_be_kept_local():
    asked = ASKED._replace(cloud_allowed=False)
    assert objection(LOCAL, asked) == ""
    for residency in (Residency.LOCAL_FIRST, Residency.CLOUD_FIRST, Residency.CLOUD_ONLY):
        assert "tenant" in objection(CLOUD, asked._replace(residency=residency))


def test_without_overflow_only_those_who_ask_for_the_cloud_get_it():
    assert "no overflow" in objection(CLOUD, ASKED, NO_OVERFLOW)
    for residency in (Residency.CLOUD_FIRST, Residency.CLOUD_ONLY):
        assert objection(CLOUD, ASKED._replace(residency=residency), NO_OVERFLOW) == ""


@pytest.mark.parametrize("limit", ["max_cost", "budget"])
def test_money_is_enough_to_the_last_millionth(limit):
    assert cost_of(ASKED, CLOUD, TERMS) == PRICE
    assert objection(CLOUD, ASKED._replace(**{limit: PRICE})) == ""
    said = objection(CLOUD, ASKED._replace(**{limit: PRICE - 1}))
    assert is_about_money(said)
    assert f"up to {PRICE} µUSD" in said
    assert objection(LOCAL, ASKED._replace(**{limit: 0})) == ""


def test_the_tighter_of_two_limits_counts_and_is_named():
    assert "the request allows 5" in objection(CLOUD, ASKED._replace(max_cost=5, budget=7))
    assert "the budget has left 5" in objection(CLOUD, ASKED._replace(max_cost=7, budget=5))


def test_an_unknown_price_is_within_no_limit_but_no_obstacle_without_one():
    silent = replace(CLOUD, prices={})
    assert cost_of(ASKED, silent, TERMS) is None
    assert objection(silent) == ""
    for limited in (ASKED._replace(budget=10**12), ASKED._replace(max_cost=10**12)):
        assert is_about_money(objection(silent, limited))


def test_prices_are_those_of_the_clouds_name_for_the_model():
    other = replace(CLOUD, prices={"m-local": Prices(1, 1), "m": Prices(1, 1)})
    assert cost_of(ASKED, other, TERMS) is None


@given(
    st.integers(0, 10**6),
    st.integers(0, 10**5),
    st.builds(Prices, st.integers(0, 10**8), st.integers(0, 10**8)),
)
def test_a_cost_is_never_rounded_down(prompt, output, prices):
    backend = replace(CLOUD, prices={"m-cloud": prices})
    cost = cost_of(Request("m", prompt, max_output=output), backend, TERMS)
    exact = prompt * prices.input + (output or ASSUMED_OUTPUT) * prices.output
    assert 0 <= cost * 1_000_000 - exact < 1_000_000


ABLE = {"m-local": frozenset({Resume.AFTER_TOKENS}), "m-cloud": frozenset({Resume.AFTER_TEXT})}


def test_an_answer_goes_on_only_where_its_kind_can():
    local, cloud = replace(LOCAL, resumes=ABLE), replace(CLOUD, resumes=ABLE)
    tokens = ASKED._replace(resume=Resume.AFTER_TOKENS)
    text = ASKED._replace(resume=Resume.AFTER_TEXT)
    assert objection(local, tokens) == objection(cloud, text) == ""
    assert "cannot go on after given tokens" in objection(cloud, tokens)
    assert "cannot go on after given text" in objection(local, text)
    assert "cannot go on" in objection(LOCAL, tokens), "it said nothing of it"


def test_an_answer_changes_tiers_only_where_both_have_the_same_model():
    cloud = replace(CLOUD, resumes=ABLE)
    asked = ASKED._replace(resume=Resume.AFTER_TEXT, begun_in=Tier.LOCAL)
    differing = TERMS._replace(continue_in_cloud=False)
    assert objection(cloud, asked) == ""
    assert "another model" in objection(cloud, asked, differing)
    assert objection(cloud, asked._replace(begun_in=Tier.CLOUD), differing) == ""
    assert objection(cloud, ASKED._replace(begun_in=Tier.LOCAL), differing) == "", "not begun"
