"""How fast a line is served."""

import pytest

from services.router.core.pace import ENOUGH, FORGOTTEN_AFTER_S, Pace


def served(pace: Pace, start: float, gap: float, times: int) -> float:
    for turn in range(1, times + 1):
        pace.served(start + turn * gap)
    return start + times * gap


def test_it_is_unknown_until_enough_have_left():
    pace = Pace()
    pace.began(100.0)
    now = served(pace, 100.0, 0.5, ENOUGH - 1)
    assert pace.gap is None
    pace.served(now + 0.5)
    assert pace.gap == pytest.approx(0.5)


def test_time_without_a_line_is_not_counted():
    pace = Pace()
    pace.began(100.0)
    now = served(pace, 100.0, 0.5, ENOUGH)
    pace.began(now + 5.0)
    pace.served(now + 5.5)
    assert pace.gap == pytest.approx(0.5)


def test_after_a_long_idle_time_it_is_unknown_again():
    pace = Pace()
    pace.began(100.0)
    now = served(pace, 100.0, 0.5, ENOUGH)
    pace.began(now + FORGOTTEN_AFTER_S + 1)
    assert pace.gap is None


def test_it_follows_a_change():
    pace = Pace()
    pace.began(100.0)
    now = served(pace, 100.0, 5.0, 20)
    served(pace, now, 0.1, 60)
    assert pace.gap == pytest.approx(0.1, abs=0.02)
