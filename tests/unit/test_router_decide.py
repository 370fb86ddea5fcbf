"""The routing decision, case by case."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.router.core.decide import choose, decide
from services.router.core.policy import Objective
from services.router.core.values import (
    Backend,
    Dispatch,
    Health,
    Load,
    Overflow,
    Pool,
    Refusal,
    Refuse,
    Request,
    Residency,
    Resume,
    Terms,
    Tier,
    Wait,
)

NOW = 1000.0
TERMS = Terms.plain("m")
HASTY = TERMS._replace(objective=Objective(ttft=0.2))


def backend(name: str, **changes) -> Backend:
    values = {
        "id": name,
        "tier": Tier.LOCAL,
        "health": Health.READY,
        "models": frozenset({"m"}),
        "load": Load(max_running=4, step_time=0.01, prefill_budget=512),
    }
    return Backend(**{**values, **changes})


def verdict(request: Request, *backends: Backend, terms: Terms = TERMS):
    return decide(request, Pool(backends), terms, NOW, Random(1)).verdict


CLOUD = backend("cloud", tier=Tier.CLOUD, load=Load(max_running=100))


def test_local_is_chosen_while_it_has_room():
    chosen = verdict(Request("m", 10), backend("a"), CLOUD)
    assert isinstance(chosen, Dispatch)
    assert (chosen.backend_id, chosen.overflow) == ("a", None)


def test_the_emptier_backend_is_chosen():
    busy = backend("busy", load=Load(running=3, max_running=4))
    assert verdict(Request("m", 10), busy, backend("free")).backend_id == "free"


def test_dispatches_that_the_report_does_not_know_count():
    full = backend("a", sent_since=4)
    assert verdict(Request("m", 10), full, CLOUD, terms=HASTY).backend_id == "cloud"


def test_who_can_be_served_locally_in_time_waits_rather_than_leaves():
    full = backend("a", load=Load(running=4, max_running=4, step_time=0.01))
    assert isinstance(verdict(Request("m", 10), full, CLOUD), Wait)


def test_the_last_chance_to_be_in_time_is_taken():
    full = backend("a", load=Load(running=4, max_running=4, step_time=0.001))
    request = Request("m", 10, waited=9.0)
    assert isinstance(verdict(request, full, CLOUD), Wait)
    slow = backend("cloud", tier=Tier.CLOUD, load=Load(max_running=100), ttft_p95=0.9)
    assert verdict(request, full, slow).backend_id == "cloud"
    # One that is too slow by now is no reason to give the local slot up.
    slower = backend("cloud", tier=Tier.CLOUD, load=Load(max_running=100), ttft_p95=3.0)
    assert isinstance(verdict(request, full, slower), Wait)


def test_a_slot_is_free_as_soon_as_its_request_has_ended():
    full = Load(running=4, max_running=4)
    assert isinstance(verdict(Request("m", 10), backend("a", load=full, in_flight=4)), Wait)
    ended = backend("a", load=full, in_flight=3, ended_since=1)
    assert verdict(Request("m", 10), ended).backend_id == "a"


def test_a_slow_backend_is_avoided():
    slow = backend("slow", load=Load(step_time_ratio=3.0, max_running=4))
    fine = backend("fine", load=Load(running=1, max_running=4))
    assert verdict(Request("m", 1000), slow, fine).backend_id == "fine"


@pytest.mark.parametrize(
    ("local", "reason"),
    [
        ([backend("a", load=Load(running=4, max_running=4))], Overflow.SATURATED),
        ([], Overflow.ABSENT),
        ([backend("a", health=Health.LOST)], Overflow.UNHEALTHY),
        ([backend("a", drained=True)], Overflow.UNHEALTHY),
        ([backend("a", cooling_until=NOW + 1)], Overflow.UNHEALTHY),
    ],
)
def test_overflow_says_why(local, reason):
    chosen = verdict(Request("m", 10), *local, CLOUD, terms=HASTY)
    assert (chosen.backend_id, chosen.overflow) == ("cloud", reason)


def test_overflow_after_a_failure_says_so():
    request = Request("m", 10, tried=frozenset({"a"}))
    assert verdict(request, backend("a"), CLOUD).overflow is Overflow.FAILED


def test_local_only_waits_and_never_leaves():
    full = backend("a", load=Load(running=4, max_running=4))
    request = Request("m", 10, residency=Residency.LOCAL_ONLY)
    assert isinstance(verdict(request, full, CLOUD), Wait)


def test_local_only_is_refused_when_nothing_local_is_healthy():
    request = Request("m", 10, residency=Residency.LOCAL_ONLY)
    refused = verdict(request, backend("a", health=Health.LOST), CLOUD)
    assert isinstance(refused, Refuse)
    assert refused.refusal is Refusal.NO_BACKEND


def test_an_unknown_model_is_refused_as_such():
    unknown = decide(Request("x", 10), Pool((backend("a"),)), Terms.plain("x"), NOW, Random(1))
    assert unknown.verdict.refusal is Refusal.MODEL_UNKNOWN


def test_a_caller_with_a_limit_waits_for_nobody_slower():
    late = backend("a", load=Load(queued_prefill_tokens=100_000, step_time=0.1, max_running=4))
    assert verdict(Request("m", 10, ttft_slo=1.0), late, CLOUD).backend_id == "cloud"
    assert isinstance(verdict(Request("m", 10, ttft_slo=1.0), late), Wait)


def test_a_caller_without_a_limit_is_served_late_rather_than_refused():
    late = backend("a", load=Load(queued_prefill_tokens=900_000, step_time=0.1, max_running=4))
    assert verdict(Request("m", 10), late).backend_id == "a"


def test_a_pinned_backend_is_the_only_choice():
    request = Request("m", 10, backend_id="b")
    assert verdict(request, backend("a"), backend("b")).backend_id == "b"
    assert isinstance(verdict(request, backend("a")), Refuse)


def test_resume_goes_only_where_it_can():
    able = backend("able", resumes={"m": frozenset({Resume.AFTER_TOKENS})})
    request = Request("m", 10, resume=Resume.AFTER_TOKENS)
    assert verdict(request, backend("a"), able).backend_id == "able"
    assert verdict(request, backend("a")).refusal is Refusal.CANNOT_RESUME


def test_a_full_cache_counts_as_busy():
    full = backend(
        "a", load=Load(running=1, kv_used_tokens=100, kv_total_tokens=100, max_running=4)
    )
    assert isinstance(verdict(Request("m", 10), full), Wait)


def test_every_backend_is_explained():
    decision = decide(
        Request("m", 10, residency=Residency.LOCAL_ONLY),
        Pool((backend("a"), CLOUD, backend("b", drained=True))),
        TERMS,
        NOW,
        Random(1),
    )
    objections = {c.backend_id: c.objection for c in decision.candidates}
    assert objections["a"] == ""
    assert "residency" in objections["cloud"]
    assert "operator" in objections["b"]


def test_equal_backends_share_the_work():
    chosen = {
        decide(
            Request("m", 10), Pool((backend("a"), backend("b"))), TERMS, NOW, Random(seed)
        ).verdict
        for seed in range(50)
    }
    assert {c.backend_id for c in chosen} == {"a", "b"}


loads = st.builds(
    Load,
    running=st.integers(0, 5),
    waiting=st.integers(0, 2),
    queued_prefill_tokens=st.sampled_from([0, 100, 100_000]),
    step_time_ratio=st.sampled_from([1.0, 3.0]),
    step_time=st.sampled_from([0.0, 0.01, 0.1]),
    max_running=st.integers(0, 4),
    prefill_budget=st.sampled_from([0, 512]),
)
pools = st.lists(
    st.builds(
        Backend,
        id=st.sampled_from("abcdef"),
        tier=st.sampled_from(Tier),
        health=st.sampled_from([Health.READY, Health.READY, Health.LOST]),
        models=st.sampled_from([frozenset({"m"}), frozenset({"m", "n"}), frozenset({"n"})]),
        load=loads,
        in_flight=st.integers(0, 4),
        drained=st.booleans(),
        cooling_until=st.sampled_from([float("-inf"), NOW + 1]),
    ),
    max_size=6,
    unique_by=lambda b: b.id,
)
requests = st.builds(
    Request,
    model=st.just("m"),
    prompt_tokens=st.integers(1, 5000),
    residency=st.sampled_from(Residency),
    ttft_slo=st.sampled_from([None, 0.01, 1.0]),
    tried=st.sampled_from([frozenset(), frozenset({"a"})]),
)


@settings(max_examples=200)
@given(requests, pools, st.integers(0, 9))
def test_the_choice_is_the_best_of_what_is_explained(request, backends, seed):
    pool = Pool(tuple(backends))
    decision = decide(request, pool, TERMS, NOW, Random(seed))
    assert decision.verdict == choose(request, pool, TERMS, NOW, Random(seed))
    feasible = [c for c in decision.candidates if c.feasible]
    for tier in request.residency.tiers:
        there = [c for c in feasible if c.tier is tier]
        if there:
            assert isinstance(decision.verdict, Dispatch)
            assert decision.verdict.backend_id == there[0].backend_id
            assert there[0].score == min(c.score for c in there)
            assert decision.verdict.predicted_ttft == there[0].predicted_ttft
            return
    if isinstance(decision.verdict, Dispatch):
        # Late, but nobody asked for an early start.
        assert request.ttft_slo is None
        (late,) = [c for c in decision.candidates if c.backend_id == decision.verdict.backend_id]
        assert late.free_slot
        assert late.objection.startswith("too slow")
