"""When a second backend may be asked."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.core.hedging import Hedging
from services.router.core.policy import HedgeRules

RULES = HedgeRules(enabled=True)
NOW = 1000.0


def busy(rules: HedgeRules = RULES, requests: int = 100) -> Hedging:
    hedging = Hedging(rules)
    for _ in range(requests):
        hedging.count(NOW)
    return hedging


@pytest.mark.parametrize(("predicted", "delay"), [(0.5, 1.0), (0.01, 0.05), (0.0, 0.05)])
def test_a_request_is_late_after_twice_its_prediction_but_not_too_soon(predicted, delay):
    assert Hedging(RULES).hedge_delay(predicted) == delay


def test_without_hedging_nobody_looks():
    hedging = busy(HedgeRules(enabled=False))
    assert hedging.hedge_delay(0.5) is None
    assert not hedging.withdraw(NOW, answering=False)


def test_a_share_of_requests_is_hedged():
    hedging = busy(requests=100)
    allowed = [hedging.withdraw(NOW, answering=False) for _ in range(5)]
    assert allowed == [True, True, False, False, False]


def test_too_few_requests_have_no_hedge():
    assert not busy(requests=49).withdraw(NOW, answering=False)


def test_nothing_is_hedged_after_its_first_token():
    assert not busy().withdraw(NOW, answering=True)


def test_a_hedge_that_costs_needs_somebody_who_affords_it():
    hedging = busy()
    assert not hedging.withdraw(NOW, answering=False, cost=500)
    assert not hedging.withdraw(NOW, answering=False, cost=500, affordable=499)
    assert hedging.withdraw(NOW, answering=False, cost=500, affordable=500)


def test_a_refused_hedge_uses_nothing_up():
    hedging = busy(requests=50)
    hedging.withdraw(NOW, answering=True)
    hedging.withdraw(NOW, answering=False, cost=1)
    assert hedging.withdraw(NOW, answering=False)


def test_requests_of_another_minute_do_not_count():
    assert not busy().withdraw(NOW + 61, answering=False)


def test_other_rules_apply_at_once():
    hedging = busy()
    hedging.set_rules(HedgeRules(enabled=True, share=0.0))
    assert not hedging.withdraw(NOW, answering=False)


@given(st.lists(st.tuples(st.floats(0.0, 0.2), st.booleans()), max_size=250))
def test_hedges_never_exceed_their_share(events):
    """All within one window."""
    share = 0.25
    hedging, now = Hedging(HedgeRules(enabled=True, share=share)), NOW
    requests = hedges = 0
    for gap, hedge in events:
        now += gap
        if hedge:
            hedges += hedging.withdraw(now, answering=False)
        else:
            hedging.count(now)
            requests += 1
        assert hedges <= share * requests + 1e-9
