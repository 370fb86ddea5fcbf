"""How soon and how fast a backend is expected to answer."""

from dataclasses import replace
from math import ceil, inf, isfinite

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.router.core.prediction import (
    DEFAULT_PREFILL_BUDGET,
    H100_LLAMA_8B,
    QUEUE_SHARE,
    outlook,
    score,
    time_to_first_token,
)
from services.router.core.values import Backend, Coefficients, Health, Load, Tier
from tests.support.decision_strategies import healthy_backends

B0, B1, B2, B3 = H100_LLAMA_8B


def backend(**changes) -> Backend:
    return Backend("a", Tier.LOCAL, Health.READY, frozenset("m"), **changes)


def loaded(backend: Backend, **changes) -> Backend:
    return replace(backend, load=replace(backend.load, **changes))


def test_the_share_of_one_more_request_is_an_eighth_of_a_millisecond_on_an_h100():
    one_more = QUEUE_SHARE * B0
    assert one_more == pytest.approx(0.125e-3, rel=0.02)


def test_every_term_of_the_formulas_by_hand():
    m, queued, tokens = 2.0, 1500, 700
    one = backend(
        load=Load(
            running=30,
            waiting=2,
            queued_prefill_tokens=1000,
            context_tokens=40_000,
            step_time_ratio=m,
            prefill_tokens_per_step=100.0,
            max_running=64,
            prefill_budget=512,
            coefficients=H100_LLAMA_8B,
        ),
        sent_since=3,
        sent_tokens_since=500,
        ended_since=1,
        in_flight=9,
        round_trip=0.004,
    )
    ahead = outlook(one)
    n = 30 + 2 + 3 - 1
    assert ahead.present == n
    step = B0 + B2 * n + B3 * 40_000
    tpot = m * (B0 + B2 * (n + 1) + B3 * 40_000 + B1 * 100)
    assert ahead.tpot == pytest.approx(tpot)
    kappa = QUEUE_SHARE * B0
    assert score(ahead, tokens) == pytest.approx(m * (B1 * (queued + tokens) + kappa * (n + 1)))
    steps = ceil((queued + tokens) / (512 - n))
    assert time_to_first_token(ahead, tokens) == pytest.approx(
        0.004 + m * (steps * step + B1 * (queued + tokens)) + tpot / 2
    )


def test_a_backend_that_says_nothing_is_an_idle_known_card():
    ahead = outlook(backend())
    assert time_to_first_token(ahead, 100) == pytest.approx(B0 + 100 * B1)
    assert (ahead.present, ahead.free_slot, ahead.kv_free) == (0, True, inf)
    assert ahead.budget == DEFAULT_PREFILL_BUDGET


def test_an_unknown_card_is_scaled_to_the_step_time_that_it_reports():
    load = Load(running=4, context_tokens=2000, prefill_tokens_per_step=50.0, step_time=0.03)
    for m in (0.5, 1.0, 4.0):
        ahead = outlook(backend(load=replace(load, step_time_ratio=m)))
        # With one more sequence than ran.
        assert ahead.tpot == pytest.approx(0.03, rel=0.01)


def test_a_prompt_beyond_the_budget_takes_several_steps():
    one = outlook(backend(load=Load(prefill_budget=100, coefficients=H100_LLAMA_8B)))
    assert time_to_first_token(one, 101) - time_to_first_token(one, 100) == pytest.approx(B0 + B1)


def test_a_budget_that_decoding_uses_up_still_reads_a_token_a_step():
    ahead = outlook(backend(load=Load(running=512, prefill_budget=512)))
    assert ahead.budget == 1
    assert isfinite(time_to_first_token(ahead, 10_000))


def test_who_comes_to_full_slots_waits_for_one_of_them_to_end():
    one = backend(load=Load(running=4, max_running=4), mean_output=100.0)
    ahead = outlook(one)
    assert not ahead.free_slot
    assert ahead.wait == pytest.approx(100 * ahead.tpot / 4)
    with_one_more = outlook(loaded(one, waiting=1))
    assert with_one_more.wait == pytest.approx(2 * 100 * with_one_more.tpot / 4)


def test_slots_that_fill_before_the_next_report_come_free_as_fast_as_any():
    told = outlook(backend(load=Load(running=4, waiting=2, max_running=4)))
    for earlier in (Load(max_running=4), Load(running=2, max_running=4)):
        sent = outlook(backend(load=earlier, sent_since=6 - earlier.running))
        assert sent.present == told.present
        assert sent.wait == pytest.approx(told.wait)
    accepted = outlook(backend(load=Load(waiting=6, max_running=4)))
    assert accepted.wait == pytest.approx(told.wait)


def test_nobody_waits_for_room_in_the_cache_of_an_empty_backend():
    stale = Load(running=1, kv_used_tokens=1000, kv_total_tokens=1000, max_running=4)
    full = outlook(backend(load=stale, in_flight=1))
    assert not full.free_slot
    assert full.wait > 0
    empty = outlook(backend(load=stale, ended_since=1))
    assert (empty.free_slot, empty.wait) == (True, 0.0)


def test_what_is_not_reported_never_counts_below_what_is_in_flight():
    assert outlook(backend(ended_since=5, in_flight=2)).present == 2
    assert outlook(backend(ended_since=5)).present == 0


def test_an_outlook_is_computed_once_for_each_state():
    one = backend()
    assert outlook(one) is outlook(one)
    assert replace(one, in_flight=3).outlook is None


MORE = [
    ("running", 1),
    ("waiting", 1),
    ("queued_prefill_tokens", 700),
    ("context_tokens", 5000),
    ("prefill_tokens_per_step", 50.0),
    ("step_time_ratio", 0.5),
    ("kv_used_tokens", 150),
]
measured = healthy_backends.map(
    lambda one: (
        one if one.load.coefficients else loaded(one, coefficients=H100_LLAMA_8B, step_time=0.0)
    )
)


@pytest.mark.parametrize(("what", "more"), MORE, ids=[what for what, _ in MORE])
@settings(max_examples=100)
@given(one=measured, tokens=st.sampled_from([1, 100, 5000]))
def test_more_load_never_promises_more(what, more, one, tokens):
    busier = loaded(one, **{what: getattr(one.load, what) + more})
    before, after = outlook(one), outlook(busier)
    assert score(after, tokens) >= score(before, tokens)
    assert after.tpot >= before.tpot
    assert before.free_slot or not after.free_slot
    if after.kv_free > 0:
        # With a full cache, more that run are more that end: only then may the wait be shorter.
        assert time_to_first_token(after, tokens) >= time_to_first_token(before, tokens)


@settings(max_examples=100)
@given(one=measured, tokens=st.sampled_from([1, 100, 5000]), field=st.sampled_from(["sent", "in"]))
def test_more_dispatches_never_promise_more(one, tokens, field):
    more = {
        "sent": {
            "sent_since": one.sent_since + 1,
            "sent_tokens_since": one.sent_tokens_since + 50,
        },
        "in": {"in_flight": one.in_flight + 1},
    }[field]
    before, after = outlook(one), outlook(replace(one, **more))
    assert score(after, tokens) >= score(before, tokens)
    assert after.tpot >= before.tpot
    assert time_to_first_token(after, tokens) >= time_to_first_token(before, tokens)


@given(healthy_backends, st.integers(1, 5000), st.integers(1, 5000))
def test_a_longer_prompt_is_never_sooner_nor_cheaper(one, tokens, more):
    ahead = outlook(one)
    assert score(ahead, tokens + more) > score(ahead, tokens)
    assert time_to_first_token(ahead, tokens + more) > time_to_first_token(ahead, tokens)


@given(healthy_backends, st.integers(1, 5000))
def test_every_prediction_is_a_number(one, tokens):
    ahead = outlook(one)
    figures = (ahead.wait, ahead.turnover, ahead.tpot, score(ahead, tokens))
    for figure in (*figures, time_to_first_token(ahead, tokens)):
        assert isfinite(figure)
        assert figure >= 0


@given(healthy_backends)
def test_a_twice_as_slow_backend_promises_half_as_much(one):
    slow = loaded(
        one,
        step_time_ratio=2 * one.load.step_time_ratio,
        coefficients=one.load.coefficients or Coefficients(*H100_LLAMA_8B),
    )
    fast = loaded(slow, step_time_ratio=one.load.step_time_ratio)
    assert score(outlook(slow), 10) == pytest.approx(2 * score(outlook(fast), 10))
    assert outlook(slow).tpot == pytest.approx(2 * outlook(fast).tpot)
