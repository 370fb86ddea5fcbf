"""When a standing line is shortened."""

from math import sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.core.codel import CoDel

NOW = 1000.0
TARGET = 0.5


def stand(codel: CoDel, since: float, until: float, step: float = 0.05) -> list[float]:
    """A line that never moves and whose oldest is overdue since `since`; the times of sheds."""
    shed, now = [], since
    while now <= until + 1e-9:
        codel.observe(now, since)
        while codel.sheds(now):
            shed.append(now)
        now += step
    return shed


def test_a_wait_above_target_is_no_harm_until_an_interval_has_passed():
    assert stand(CoDel(1.0), NOW, NOW + 0.95) == []


def test_a_standing_line_is_shed_ever_faster():
    shed = stand(CoDel(1.0), NOW, NOW + 10, step=0.001)
    expected = [NOW + 1.0]
    for count in range(1, len(shed)):
        expected.append(expected[-1] + 1 / sqrt(count))
    assert shed == pytest.approx(expected, abs=0.002)
    assert len(shed) > 20


def test_one_wait_below_target_ends_it():
    codel = CoDel(1.0)
    stand(codel, NOW, NOW + 0.9)
    codel.served(NOW + 0.95, 0.4, TARGET)
    codel.observe(NOW + 1.0, NOW)
    assert not codel.sheds(NOW + 1.9)
    assert codel.sheds(NOW + 1.95)


def test_served_waits_above_target_do_not_end_it():
    codel = CoDel(1.0)
    codel.observe(NOW, NOW)
    for tenth in range(1, 11):
        codel.joined()
        codel.served(NOW + tenth / 10, 0.6, TARGET)
        codel.observe(NOW + tenth / 10, NOW)
    assert codel.sheds(NOW + 1.0)


def test_an_oldest_that_is_not_yet_overdue_ends_it():
    codel = CoDel(1.0)
    stand(codel, NOW, NOW + 0.9)
    codel.observe(NOW + 0.95, NOW + 1.2)
    assert not codel.sheds(NOW + 5)


def test_a_line_that_drains_is_left_alone():
    codel = CoDel(1.0)
    for _ in range(100):
        codel.joined()
    for tick in range(60):
        now = NOW + tick * 0.05
        codel.served(now, 0.6 + tick * 0.05, TARGET)
        codel.observe(now, NOW)
        assert not codel.sheds(now)


def test_a_line_that_grows_is_shed_as_fast_as_it_grows():
    """Twenty more join every second than are served: the law alone would take forty seconds."""
    codel, shed = CoDel(1.0), 0
    for tick in range(1, 101):
        now = NOW + tick * 0.05
        codel.joined()
        codel.observe(now, NOW)
        while codel.sheds(now):
            shed += 1
    assert 70 <= shed <= 110  # 20 a second, for the four seconds after the first


def test_a_line_that_stands_again_is_shed_at_about_its_former_rate():
    codel = CoDel(1.0)
    first = stand(codel, NOW, NOW + 20, step=0.01)
    codel.served(NOW + 20, 0.1, TARGET)
    again = stand(codel, NOW + 21, NOW + 25, step=0.01)
    fresh = [at for at in first if at <= NOW + 4]
    assert len(again) > 3 * len(fresh)


def test_after_a_long_peace_it_begins_gently():
    codel = CoDel(1.0)
    stand(codel, NOW, NOW + 20, step=0.01)
    codel.served(NOW + 20, 0.1, TARGET)
    later = stand(codel, NOW + 100, NOW + 104, step=0.01)
    assert later == pytest.approx([at + 100 for at in stand(CoDel(1.0), NOW, NOW + 4, 0.01)])


def test_asked_late_it_makes_up_for_an_interval_at_most():
    codel = CoDel(1.0)
    stand(codel, NOW, NOW + 3)
    codel.observe(NOW + 60, NOW)
    assert codel.next_look(NOW) < NOW + 60
    made_up = 0
    while codel.sheds(NOW + 60):
        made_up += 1
    assert made_up <= 4


@given(st.lists(st.tuples(st.floats(0, 0.5), st.booleans()), max_size=100))
def test_it_sheds_only_after_a_whole_interval_without_a_good_wait(steps):
    codel, now, fine_at = CoDel(1.0), NOW, NOW
    codel.fine(now)
    for gap, good in steps:
        now += gap
        if good:
            codel.joined()
            codel.served(now, 0.1, TARGET)
            fine_at = now
        codel.observe(now, NOW - 10)
        while codel.sheds(now):
            assert now - fine_at >= 1.0
