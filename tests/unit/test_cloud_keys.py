"""Keys take turns, and each is left alone for as long as its own reason lasts."""

import contextlib

import pytest

from services.cloud_proxy.keys import Blocked
from services.cloud_proxy.rate_limits import LimitKind
from tests.support.key_pool import Scene, configured, left


def test_keys_take_turns():
    s = Scene("a", "b", "c")
    assert [s.pick().number for _ in range(6)] == [0, 1, 2, 0, 1, 2]


def test_a_pool_without_keys_sends_no_credential():
    s = Scene()
    assert s.pick().secret is None
    s.pool.limited(s.pick(), "m", 5)
    assert s.pool.pick("m", 1) is None


def test_limited_keys_cool_and_come_back_when_the_provider_said():
    s = Scene("sk-one", "b")
    first = s.pick()
    s.pool.limited(first, "m", 5)
    assert s.picked() == {"b"}
    s.pool.limited(s.by("b"), "m", 30)
    assert s.pool.pick("m", 10) is None
    assert s.pool.wait("m", 10) == pytest.approx(5)
    assert s.pool.blocked_by("m", 10) is Blocked.LIMITED
    s.now += 5
    assert s.picked() == {"sk-one"}
    s.pool.limited(first, "m", 1e9)
    s.now += 60
    assert s.picked() == {"sk-one", "b"}
    assert "sk-one" not in repr(first)
    assert "sk-one" not in repr(s.pool.states())


def test_a_shorter_limit_does_not_shorten_a_longer_one():
    s = Scene("a")
    s.pool.limited(s.by("a"), "m", 20)
    s.pool.limited(s.by("a"), "m", 1)
    assert s.pool.wait("m", 10) == pytest.approx(20)


def test_siblings_of_a_quota_cool_and_run_out_of_credit_together():
    s = Scene("q a", "q b", "c")
    s.pool.limited(s.by("a"), "m", 5)
    assert s.picked() == {"c"}
    s.now += 5
    s.pool.out_of_credit(s.by("b"))
    assert s.picked() == {"c"}
    s.now += 30
    assert s.picked() == {"a", "b", "c"}


def test_a_limit_on_one_model_leaves_others_alone_where_limits_are_by_model():
    for per_model, others in ((True, {"a"}), (False, set())):
        s = Scene("a", per_model=per_model)
        s.pool.limited(s.by("a"), "m", 5)
        s.pool.observe(s.by("a"), "m", left(0, 5))
        assert s.picked(model="m") == set()
        assert s.picked(model="other") == others


def test_a_rejected_key_rests_alone_and_longer_each_time():
    s = Scene("q a", "q b")
    for seconds in (30, 60, 120, 240, 480, 600, 600):
        s.pool.rejected(s.by("a"))
        # Requests that were under way are refused, too; that is no further time.
        s.pool.rejected(s.by("a"))
        s.now += seconds - 1
        assert s.picked() == {"b"}
        s.now += 1
        assert s.picked() == {"a", "b"}
    s.pool.good(s.by("a"))
    s.pool.rejected(s.by("a"))
    s.now += 30
    assert s.picked() == {"a", "b"}


def test_why_no_key_is_used_is_told_by_the_key_that_is_best_off():
    s = Scene("a", "b")
    s.pool.rejected(s.by("a"))
    s.pool.rejected(s.by("b"))
    assert s.pool.blocked_by("m", 1) is Blocked.REJECTED
    s = Scene("a", "b")
    s.pool.rejected(s.by("a"))
    s.pool.out_of_credit(s.by("b"))
    assert s.pool.blocked_by("m", 1) is Blocked.NO_CREDIT
    s = Scene("a", "b")
    s.pool.rejected(s.by("a"))
    s.fail("b", 5)
    assert s.pool.blocked_by("m", 1) is Blocked.FAILING


def test_a_key_that_fails_in_a_row_is_left_alone_longer_each_time_and_probed():
    s = Scene("a")
    s.fail("a", 4)
    s.pool.good(s.by("a"))
    s.fail("a", 4)
    assert s.picked() == {"a"}
    s.fail("a", 1)
    for seconds in (5, 10, 20, 40, 60, 60):
        assert s.pool.pick("m", 1) is None
        assert s.pool.wait("m", 1) == pytest.approx(seconds)
        s.now += seconds
        with s.pool.using(s.pick(), "m", 1):
            assert s.pool.pick("m", 1) is None, "one probe at a time"
            s.fail("a", 1)
    s.now += 60
    with s.pool.using(s.pick(), "m", 1):
        s.pool.good(s.by("a"))
    assert s.picked() == {"a"}
    s.fail("a", 5)
    assert s.pool.wait("m", 1) == pytest.approx(5)


def test_a_probe_that_is_cancelled_gives_its_place_back():
    s = Scene("a")
    s.fail("a", 5)
    s.now += 5
    with contextlib.suppress(KeyboardInterrupt), s.pool.using(s.pick(), "m", 1):
        raise KeyboardInterrupt
    with s.pool.using(s.pick(), "m", 1):
        assert s.pool.states()[0].in_flight == 1
    assert s.pool.states()[0].in_flight == 0


def test_a_probe_that_streams_for_long_keeps_others_away_for_a_while_only():
    s = Scene("a")
    s.fail("a", 5)
    s.now += 5
    with s.pool.using(s.pick(), "m", 1):
        assert s.pool.wait("m", 1) == pytest.approx(5)
        s.now += 5
        with s.pool.using(s.pick(), "m", 1):
            assert s.pool.pick("m", 1) is None
        # The later probe is over, and the first one has had its time.
        assert s.pick()


def test_success_that_began_before_the_breaker_opened_does_not_close_it():
    s = Scene("a")
    s.fail("a", 5)
    s.pool.good(s.by("a"))
    assert s.pool.pick("m", 1) is None


def test_requests_that_the_known_rest_does_not_cover_wait_for_the_reset():
    s = Scene("a")
    s.pool.observe(s.by("a"), "m", left(100, 7))
    assert s.picked(tokens=100) == {"a"}
    assert s.picked(tokens=101) == set()
    assert s.pool.wait("m", 101) == pytest.approx(7)
    assert s.pool.blocked_by("m", 101) is Blocked.LIMITED
    with s.pool.using(s.pick(tokens=60), "m", 60):
        pass
    assert s.picked(tokens=41) == set()
    assert s.picked(tokens=40) == {"a"}
    s.pool.observe(s.by("a"), "m", left(90, 7))
    assert s.picked(tokens=90) == {"a"}
    s.now += 7
    assert s.picked(tokens=10**9) == {"a"}


def test_remaining_requests_count_down_with_what_is_sent():
    s = Scene("q a", "q b")
    s.pool.observe(s.by("a"), "m", left(2, 3600, LimitKind.REQUESTS))
    for _ in range(2):
        with s.pool.using(s.pick(), "m", 10):
            pass
    assert s.pool.pick("m", 10) is None
    # No header is believed for an hour.
    assert s.pool.wait("m", 10) == pytest.approx(60)


def test_limits_on_one_direction_bind_when_nothing_is_left():
    s = Scene("a")
    s.pool.observe(s.by("a"), "m", left(5, 9, LimitKind.OUTPUT_TOKENS))
    assert s.picked(tokens=1000) == {"a"}
    s.pool.observe(s.by("a"), "m", left(0, 9, LimitKind.INPUT_TOKENS))
    assert s.picked(tokens=1) == set()


def test_replacing_keys_keeps_what_is_known_of_those_that_stay():
    s = Scene("a", "q b", "q c")
    s.pool.rejected(s.by("a"))
    s.pool.limited(s.by("b"), "m", 50)
    s.pool.replace(configured("a", "q c", "q d", "e"))
    assert s.picked() == {"e"}
    assert [state.number for state in s.pool.states()] == [0, 2, 3, 4]
    s.now += 50
    assert s.picked() == {"a", "c", "d", "e"}


def test_an_attempt_under_way_ends_well_with_a_key_that_was_replaced():
    s = Scene("a")
    key = s.pick()
    with s.pool.using(key, "m", 1):
        s.pool.replace(configured("b"))
        s.pool.observe(key, "m", left(0, 50))
        s.pool.rejected(key)
    assert s.picked() == {"b"}
    assert [state.blocked for state in s.pool.states()] == [None]


def test_a_key_that_is_there_twice_has_one_turn():
    s = Scene("a", "a", "b")
    assert [s.pick().number for _ in range(4)] == [0, 1, 0, 1]
