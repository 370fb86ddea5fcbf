"""When a backend is left alone, and how it comes back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.core.breaker import Breaker, BreakerState
from services.router.core.policy import BreakerRules

RULES = BreakerRules()
NOW = 1000.0


def opened(rules: BreakerRules = RULES, now: float = NOW) -> Breaker:
    breaker = Breaker(rules)
    for _ in range(rules.consecutive):
        breaker.failed(breaker.sent(now), now)
    return breaker


def test_it_opens_after_failures_in_a_row_and_says_until_when():
    breaker = Breaker(RULES)
    for _ in range(2):
        breaker.failed(breaker.sent(NOW), NOW)
    assert breaker.may_send(NOW)
    breaker.failed(breaker.sent(NOW), NOW)
    assert breaker.state(NOW) is BreakerState.OPEN
    assert breaker.open_until == NOW + 5.0
    assert not breaker.may_send(NOW + 4.9)


def test_a_success_between_failures_keeps_it_closed():
    breaker = Breaker(RULES)
    for outcome in (breaker.failed, breaker.failed, breaker.succeeded, breaker.failed):
        outcome(breaker.sent(NOW), NOW)
    assert breaker.state(NOW) is BreakerState.CLOSED


def test_it_opens_when_half_of_enough_requests_fail_though_never_in_a_row():
    breaker = Breaker(RULES)
    for turn in range(9):
        breaker.succeeded(breaker.sent(NOW), NOW + turn / 10)
        breaker.failed(breaker.sent(NOW), NOW + turn / 10)
    assert breaker.may_send(NOW + 1)
    breaker.succeeded(breaker.sent(NOW + 1), NOW + 1)
    breaker.failed(breaker.sent(NOW + 1), NOW + 1)
    assert not breaker.may_send(NOW + 1)


def test_failures_outside_the_window_do_not_count_for_the_share():
    breaker = Breaker(RULES)
    for turn in range(9):
        breaker.succeeded(breaker.sent(NOW), NOW + turn / 10)
        breaker.failed(breaker.sent(NOW), NOW + turn / 10)
    later = NOW + 20
    breaker.succeeded(breaker.sent(later), later)
    breaker.failed(breaker.sent(later), later)
    assert breaker.may_send(later)


def test_after_the_rest_one_probe_goes_and_nobody_else():
    breaker = opened()
    assert breaker.state(NOW + 5) is BreakerState.HALF_OPEN
    assert breaker.may_send(NOW + 5)
    breaker.sent(NOW + 5)
    assert not breaker.may_send(NOW + 5)
    assert breaker.state(NOW + 5) is BreakerState.HALF_OPEN


@pytest.mark.parametrize("good_news", ["succeeded", "proved"])
def test_a_probe_that_is_answered_closes_it(good_news):
    breaker = opened()
    probe = breaker.sent(NOW + 5)
    getattr(breaker, good_news)(probe, NOW + 6)
    assert breaker.state(NOW + 6) is BreakerState.CLOSED
    assert breaker.may_send(NOW + 6)


def test_a_first_token_while_closed_is_no_outcome():
    breaker = Breaker(RULES)
    for _ in range(RULES.consecutive):
        request = breaker.sent(NOW)
        breaker.proved(request, NOW)
        breaker.failed(request, NOW)
    assert not breaker.may_send(NOW)


def test_a_probe_that_fails_doubles_the_rest_up_to_the_longest():
    breaker, now, rests = opened(), NOW, []
    for _ in range(6):
        rests.append(breaker.open_until - now)
        now = breaker.open_until
        breaker.failed(breaker.sent(now), now)
    assert rests == [5.0, 10.0, 20.0, 40.0, 60.0, 60.0]


def test_a_long_healthy_life_before_does_not_shorten_the_rest_after_a_failed_probe():
    breaker = opened()
    breaker.succeeded(breaker.sent(NOW + 5), NOW + 5)
    breaker.succeeded(breaker.sent(NOW + 900), NOW + 900)
    for _ in range(3):
        breaker.failed(breaker.sent(NOW + 901), NOW + 901)
    breaker.failed(breaker.sent(NOW + 906), NOW + 906)
    assert breaker.open_until == NOW + 906 + 10.0


def test_failures_from_before_a_recovery_do_not_count_afterwards():
    breaker = Breaker(RULES)
    for _ in range(10):
        breaker.succeeded(breaker.sent(NOW), NOW)
        breaker.failed(breaker.sent(NOW), NOW)
    assert not breaker.may_send(NOW)
    breaker.succeeded(breaker.sent(NOW + 5), NOW + 5)
    breaker.failed(breaker.sent(NOW + 5), NOW + 5)
    assert breaker.may_send(NOW + 5)


def test_a_relapse_soon_after_a_recovery_rests_longer():
    breaker = opened()
    breaker.succeeded(breaker.sent(NOW + 5), NOW + 5)
    for _ in range(3):
        breaker.failed(breaker.sent(NOW + 6), NOW + 6)
    assert breaker.open_until == NOW + 6 + 10.0


def test_health_makes_the_rest_short_again():
    breaker = opened()
    breaker.succeeded(breaker.sent(NOW + 5), NOW + 5)
    breaker.succeeded(breaker.sent(NOW + 16), NOW + 16)
    for _ in range(3):
        breaker.failed(breaker.sent(NOW + 17), NOW + 17)
    assert breaker.open_until == NOW + 17 + 5.0


def test_quiet_time_without_requests_is_not_health():
    breaker = opened()
    breaker.succeeded(breaker.sent(NOW + 5), NOW + 5)
    for _ in range(3):
        breaker.failed(breaker.sent(NOW + 500), NOW + 500)
    assert breaker.open_until == NOW + 500 + 10.0


def test_a_probe_that_was_given_up_makes_room_for_another():
    breaker = opened()
    probe = breaker.sent(NOW + 5)
    breaker.abandoned(probe, NOW + 6)
    assert breaker.may_send(NOW + 6)
    assert breaker.state(NOW + 6) is BreakerState.HALF_OPEN


def test_a_probe_that_nobody_reports_blocks_for_the_longest_rest_only():
    breaker = opened()
    breaker.sent(NOW + 5)
    assert not breaker.may_send(NOW + 64)
    assert breaker.may_send(NOW + 65)


def test_what_was_sent_before_it_opened_says_nothing_afterwards():
    breaker = Breaker(RULES)
    old = [breaker.sent(NOW) for _ in range(10)]
    for request in old[:3]:
        breaker.failed(request, NOW)
    until = breaker.open_until
    breaker.failed(old[3], NOW + 3)
    breaker.succeeded(old[4], NOW + 3)
    breaker.proved(old[4], NOW + 3)
    assert breaker.open_until == until
    probe = breaker.sent(NOW + 5)
    breaker.succeeded(old[5], NOW + 5)
    breaker.abandoned(old[6], NOW + 5)
    assert not breaker.may_send(NOW + 5)
    breaker.succeeded(probe, NOW + 6)
    for request in old[7:]:
        breaker.failed(request, NOW + 6)
    assert breaker.may_send(NOW + 6)


def test_what_was_sent_in_spite_of_a_rest_is_no_probe():
    breaker = opened()
    forced = breaker.sent(NOW + 1)
    breaker.succeeded(forced, NOW + 1)
    assert not breaker.may_send(NOW + 2)
    breaker.sent(NOW + 5)
    breaker.succeeded(forced, NOW + 5)
    assert breaker.state(NOW + 5) is BreakerState.HALF_OPEN


def test_running_without_a_token_for_too_long_opens_it():
    breaker = Breaker(RULES)
    breaker.heartbeat(NOW)
    assert not breaker.check_silence(NOW + 7.9, running=1)
    assert breaker.check_silence(NOW + 8.0, running=1)
    assert breaker.open_until == NOW + 13.0
    assert not breaker.check_silence(NOW + 9, running=1), "it is open already"


def test_tokens_in_time_keep_it_closed_for_an_hour():
    breaker = Breaker(RULES)
    for second in range(3600):
        if second % 7 == 0:
            breaker.heartbeat(NOW + second)
        assert not breaker.check_silence(NOW + second, running=200)


def test_an_idle_backend_is_not_silent():
    breaker = Breaker(RULES)
    breaker.heartbeat(NOW)
    for second in range(100):
        assert not breaker.check_silence(NOW + second, running=0)
    assert not breaker.check_silence(NOW + 100, running=1), "silence counts from here"
    assert not breaker.check_silence(NOW + 107, running=1)
    assert breaker.check_silence(NOW + 108, running=1)


def test_a_long_prompt_excuses_silence():
    breaker = Breaker(RULES)
    breaker.heartbeat(NOW)
    assert not breaker.check_silence(NOW + 20, running=1, excused=30.0)
    assert breaker.check_silence(NOW + 30, running=1, excused=30.0)


def test_a_silent_probe_opens_it_again_for_longer():
    breaker = opened()
    breaker.sent(NOW + 5)
    assert not breaker.check_silence(NOW + 12, running=4)
    assert breaker.check_silence(NOW + 13, running=4)
    assert breaker.open_until == NOW + 13 + 10.0


def test_an_operator_closes_it_and_what_is_under_way_does_not_open_it():
    breaker = opened()
    probe = breaker.sent(NOW + 5)
    breaker.reset()
    assert breaker.state(NOW) is BreakerState.CLOSED
    for _ in range(5):
        breaker.failed(probe, NOW + 6)
    assert breaker.may_send(NOW + 6)


def test_failing_fast_earns_nothing():
    """A backend that fails in no time looks idle; it still gets three requests and the probes."""
    breaker, sent = Breaker(RULES), 0
    for millisecond in range(0, 600_000, 5):
        now = NOW + millisecond / 1000
        if breaker.may_send(now):
            sent += 1
            breaker.failed(breaker.sent(now), now)
    assert sent <= 3 + 4 + 600 / 60


def test_other_rules_apply_at_once():
    breaker = Breaker(RULES)
    breaker.set_rules(BreakerRules(consecutive=1, rest=1.0, longest_rest=2.0, window=5.0))
    breaker.failed(breaker.sent(NOW), NOW)
    assert breaker.open_until == NOW + 2.0


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["send", "good", "bad", "leave", "token", "look"]),
            st.floats(0.0, 12.0),
            st.integers(0, 5),
        ),
        max_size=80,
    )
)
def test_whatever_happens_it_rests_no_longer_than_allowed_and_probes_one_at_a_time(events):
    breaker, now, under_way, probe_at = Breaker(RULES), NOW, [], None
    for event, gap, which in events:
        now += gap
        before = breaker.state(now)
        if event == "send" and breaker.may_send(now):
            if before is BreakerState.HALF_OPEN:
                assert probe_at is None or now - probe_at >= RULES.longest_rest
                probe_at = now
            under_way.append(breaker.sent(now))
            assert breaker.may_send(now) == (before is BreakerState.CLOSED)
        elif event in ("good", "bad", "leave") and under_way:
            request = under_way.pop(which % len(under_way))
            report = {"good": breaker.succeeded, "bad": breaker.failed, "leave": breaker.abandoned}
            report[event](request, now)
        elif event == "token":
            breaker.heartbeat(now)
        elif event == "look":
            breaker.check_silence(now, len(under_way))
        after = breaker.state(now)
        if after is not BreakerState.HALF_OPEN or breaker.may_send(now):
            probe_at = None
        if before is BreakerState.OPEN:
            assert after is BreakerState.OPEN, "only time ends a rest"
        if event == "good":
            assert after is before or after is BreakerState.CLOSED
        if event == "bad":
            assert after is before or after is BreakerState.OPEN
        assert breaker.open_until <= now + RULES.longest_rest
        assert breaker.may_send(now) == (now >= breaker.open_until)
