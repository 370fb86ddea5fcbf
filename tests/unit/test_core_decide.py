"""What holds of every decision: who may get a request, what it may cost, and that it is pure."""

from copy import deepcopy
from dataclasses import replace
from math import inf
from random import Random

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from services.router.core.decide import choose, decide
from services.router.core.feasibility import cost_of, standing_objection
from services.router.core.policy import Algorithm, Objective
from services.router.core.prediction import outlook
from services.router.core.prefix import PrefixIndex
from services.router.core.values import (
    Backend,
    Dispatch,
    Health,
    Load,
    Pool,
    Prices,
    Request,
    Residency,
    Terms,
    Tier,
)
from tests.support.decision_strategies import (
    NAMES,
    NOW,
    healthy_backends,
    pools,
    prefixes,
    requests,
    snapshot,
    terms,
)

seeds = st.integers(0, 9)
MANY = settings(max_examples=200)


def by_id(found: list[Backend], name: str) -> Backend:
    (one,) = [backend for backend in found if backend.id == name]
    return one


@MANY
@given(requests, pools(), prefixes(), terms, seeds)
def test_nobody_gets_a_request_that_it_may_not_have(request, found, index, terms, seed):
    verdict = choose(request, snapshot(found, index), terms, NOW, Random(seed))
    if not isinstance(verdict, Dispatch):
        return
    chosen = by_id(found, verdict.backend_id)
    assert standing_objection(request, chosen, terms, NOW) == ""
    assert verdict.tier is chosen.tier
    assert terms.name_in(chosen.tier) in chosen.models
    assert outlook(chosen).free_slot
    if chosen.tier is Tier.CLOUD:
        assert request.cloud_allowed
        assert terms.overflow.enabled or request.residency.tiers[0] is Tier.CLOUD


@MANY
@given(requests, pools(), prefixes(), terms, seeds)
def test_what_must_stay_local_stays_whatever_else_is_said(request, found, index, terms, seed):
    private = request._replace(residency=Residency.LOCAL_ONLY)
    verdict = choose(private, snapshot(found, index), terms, NOW, Random(seed))
    if isinstance(verdict, Dispatch):
        assert by_id(found, verdict.backend_id).tier is Tier.LOCAL
        assert verdict.cost == 0


@MANY
@given(requests, pools(), terms, seeds)
def test_no_limit_on_money_is_exceeded(request, found, terms, seed):
    verdict = choose(request, snapshot(found), terms, NOW, Random(seed))
    if not isinstance(verdict, Dispatch):
        return
    chosen = by_id(found, verdict.backend_id)
    assert verdict.cost == (cost_of(request, chosen, terms) or 0)
    for limit in (request.max_cost, request.budget):
        assert limit is None or verdict.cost <= limit
    if chosen.tier is Tier.CLOUD and (request.max_cost, request.budget) != (None, None):
        assert "m" in chosen.prices, "an unknown price is within no limit"


@MANY
@given(requests, pools(), prefixes(), terms, seeds, st.integers(0, 7))
def test_the_same_question_gets_the_same_answer_and_changes_nothing(
    request, found, index, terms, seed, turn
):
    pool = snapshot(found, index, turn)
    before = deepcopy(pool)
    one = choose(request, pool, terms, NOW, Random(seed))
    assert one == choose(request, pool, terms, NOW, Random(seed))
    assert one == choose(request, before, terms, NOW, Random(seed))
    assert one == decide(request, pool, terms, NOW, Random(seed)).verdict
    assert pool.backends == before.backends
    assert vars(index) == vars(before.prefixes)


@MANY
@given(requests, pools(), prefixes(), terms, seeds)
def test_a_feasible_backend_of_the_preferred_tier_is_never_passed_over(
    request, found, index, terms, seed
):
    """Nor one of the second tier, for one that is not feasible."""
    decision = decide(request, snapshot(found, index), terms, NOW, Random(seed))
    feasible = {c.backend_id: c for c in decision.candidates if c.feasible}
    for tier in request.residency.tiers:
        there = [c for c in feasible.values() if c.tier is tier]
        if there:
            verdict = decision.verdict
            assert isinstance(verdict, Dispatch), "nobody waits where somebody is feasible"
            assert verdict.tier is tier
            assert verdict.backend_id in feasible
            assert not verdict.late
            return
        if tier is Tier.LOCAL and not isinstance(decision.verdict, Dispatch):
            return  # a local slot is expected in time
    if isinstance(decision.verdict, Dispatch):
        assert decision.verdict.late
        assert request.ttft_slo is None


@MANY
@given(requests, pools(), prefixes(), terms, seeds, st.integers(0, 7))
def test_each_algorithm_takes_the_best_of_what_is_explained(
    request, found, index, terms, seed, turn
):
    pool = snapshot(found, index, turn)
    decision = decide(request, pool, terms, NOW, Random(seed))
    verdict = decision.verdict
    assume(isinstance(verdict, Dispatch) and not verdict.late)
    rivals = [c for c in decision.candidates if c.feasible and c.tier is verdict.tier]
    chosen = rivals[0]
    assert chosen.backend_id == verdict.backend_id == decision.candidates[0].backend_id
    assert verdict.predicted_ttft == chosen.predicted_ttft
    assert verdict.tokens == request.prompt_tokens - chosen.cached_tokens
    present = {b.id: outlook(b).present for b in found}
    if verdict.tier is Tier.CLOUD:
        known = [c.cost for c in rivals if "m" in by_id(found, c.backend_id).prices]
        assert verdict.cost == min(known, default=0)
    elif terms.algorithm is Algorithm.PREDICTED:
        assert chosen.score == min(c.score for c in rivals)
    elif terms.algorithm is Algorithm.LEAST_OUTSTANDING:
        assert present[chosen.backend_id] == min(present[c.backend_id] for c in rivals)
    elif terms.algorithm is Algorithm.POWER_OF_TWO and len(rivals) > 1:
        fuller = [c for c in rivals if present[c.backend_id] >= present[chosen.backend_id]]
        assert len(fuller) > 1, "the fullest of all loses against any other"
    elif terms.algorithm is Algorithm.ROUND_ROBIN:
        in_turn = sorted(c.backend_id for c in rivals)
        assert chosen.backend_id == in_turn[turn % len(in_turn)]


@MANY
@given(requests, pools(healthy_backends), prefixes(), terms, seeds, st.integers(1, 50))
def test_more_load_makes_nobody_more_attractive(request, found, index, terms, seed, more):
    assume(terms.algorithm in (Algorithm.PREDICTED, Algorithm.LEAST_OUTSTANDING))
    before = choose(request, snapshot(found, index), terms, NOW, Random(seed))
    for n, backend in enumerate(found):
        if isinstance(before, Dispatch) and before.backend_id == backend.id:
            continue
        load = replace(
            backend.load,
            running=backend.load.running + more,
            queued_prefill_tokens=backend.load.queued_prefill_tokens + 10 * more,
        )
        # A backend in use has a limited cache again: only more load of the same kind compares.
        busier = replace(backend, load=load, in_flight=backend.in_flight + more)
        others = [*found[:n], busier, *found[n + 1 :]]
        after = choose(request, snapshot(others, index), terms, NOW, Random(seed))
        if isinstance(after, Dispatch) and busier.tier is Tier.LOCAL:
            assert after.backend_id != backend.id


@MANY
@given(requests, pools(healthy_backends), terms, seeds, st.integers(1, 3))
def test_a_prefix_hit_raises_no_score_and_no_time(request, found, terms, seed, depth):
    request = request._replace(blocks=(1, 2, 3), affinity="")
    cold = decide(request, snapshot(found, PrefixIndex()), terms, NOW, Random(seed))
    index = PrefixIndex()
    for name in NAMES:
        index.sent(name, (1, 2, 3)[:depth])
    warm = decide(request, snapshot(found, index), terms, NOW, Random(seed))
    before = {c.backend_id: c for c in cold.candidates}
    for candidate in warm.candidates:
        assert candidate.score <= before[candidate.backend_id].score
        assert candidate.predicted_ttft <= before[candidate.backend_id].predicted_ttft
        assert candidate.cached_tokens < request.prompt_tokens


@given(healthy_backends, requests, terms)
def test_a_later_decision_is_never_slower_for_a_backend_that_warms_up(backend, request, terms):
    def score(now: float) -> float:
        (candidate,) = decide(request, Pool((backend,)), terms, now, Random(1)).candidates
        return candidate.score

    assert score(NOW + 20) <= score(NOW + 3) <= score(NOW) or not terms.slow_start
    assert score(NOW + 20) == score(NOW + 40)


# Cases that once went wrong.

TERMS = Terms.plain("m")


def local(name: str = "a", **changes) -> Backend:
    return Backend(name, Tier.LOCAL, Health.READY, frozenset({"m"}), **changes)


def cloud(name: str = "cloud", **changes) -> Backend:
    return Backend(name, Tier.CLOUD, Health.READY, frozenset({"m"}), **changes)


def test_an_objective_without_a_limit_for_the_first_token_keeps_the_one_for_the_others():
    slow = local(load=Load(running=1, step_time=0.1))
    for algorithm in Algorithm:
        patient = TERMS._replace(objective=Objective(ttft=inf, tpot=0.05), algorithm=algorithm)
        verdict = choose(Request("m", 10), Pool((slow, cloud())), patient, NOW, Random(1))
        assert verdict.backend_id == "cloud"


def test_who_does_not_say_its_prices_is_not_taken_for_the_cheapest():
    asked = Request("m", 10, residency=Residency.CLOUD_ONLY)
    cheap, dear = ({"m": Prices(price, price)} for price in (1_000, 9_000))
    rivals = (cloud("silent"), cloud("dear", prices=dear), cloud("cheap", prices=cheap))
    assert choose(asked, Pool(rivals), TERMS, NOW, Random(1)).backend_id == "cheap"
    assert choose(asked, Pool(rivals[:1]), TERMS, NOW, Random(1)).backend_id == "silent"
